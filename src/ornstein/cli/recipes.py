"""`ornstein recipes`."""


def recipes() -> None:
    """List the recipes."""
    from ornstein.recipe import about, names

    width = max(map(len, names()))
    for name in names():
        print(f"{name:{width}}  {about(name)}")
    print("\nornstein show NAME    ornstein train NAME --data PATH")
