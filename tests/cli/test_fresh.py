"""`--fresh` sets a run aside only for one that can take its place."""

from ornstein.cli import run

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "--no-previews"]


def test_a_refused_request_does_not_move_the_old_run(tmp_path, capsys):
    words = ["train", "edm", "--samples", "64", "--run", "one", "--runs", str(tmp_path), *TINY]
    assert run(words) == 0
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run([*words, "--fresh", "augment.crop=50"]) == 2
    assert "augment.crop=50 must be below 8" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert run([*words, "--fresh"]) == 0
    assert len(list(tmp_path.iterdir())) == len(before) + 1
