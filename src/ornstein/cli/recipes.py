"""`ornstein recipes`."""


def recipes() -> None:
    """List the recipes, and the plans, which train several in order."""
    from ornstein import plan
    from ornstein.recipe import about, names

    width = max(map(len, (*names(), *plan.names())))
    for name in names():
        print(f"{name:{width}}  {about(name)}")
    for name in plan.names():
        stages = ", ".join(stage.name for stage in plan.named(name).stages)
        print(f"{name:{width}}  {plan.about(name)} Stages: {stages}.")
    print("\nornstein show NAME    ornstein train NAME --data PATH")
