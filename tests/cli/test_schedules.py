"""`ornstein schedules`: curves, strips and the table, for every kind of process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.cli import run
from ornstein.cli.schedules import TIMES, process_of
from ornstein.data.sources import Digits, Toy
from ornstein.diffusion.process import VE, VP, Cosine, Straight, Tabulated
from ornstein.noise import Noise
from ornstein.schedules import TIMES as SHOWN
from ornstein.schedules import betas, curves, log_snrs, noised

from ..helpers import PROCESSES


def words(*given, capsys):
    """Exit code, standard output and standard error of `ornstein schedules`."""
    capsys.readouterr()
    code = run(["schedules", *given])
    return (code, *capsys.readouterr())


def test_betas_of_a_table_are_its_own():
    rescaled = Tabulated(zero_terminal=True, shift=2.0)
    for process in (Tabulated(), Tabulated(rule="cosine", steps=100), rescaled):
        t, beta = betas(process)
        np.testing.assert_allclose(beta, process.betas().numpy(), rtol=1e-9)
        assert t[0] == 1 / process.steps
        assert t[-1] == 1
    assert betas(rescaled)[1][-1] == 1


def test_betas_of_a_continuous_process_integrate_its_rate():
    """For VP, log(1 − β_i) = −∫ β(t) dt over the step, with β(t) linear: by the middle exactly."""
    t, beta = betas(VP())
    rate = 0.1 + (20.0 - 0.1) * (t - 0.5 / 1000)
    np.testing.assert_allclose(-np.log1p(-beta), rate / 1000, rtol=1e-9)
    assert betas(Straight())[1][-1] == 1
    assert not betas(VE())[1].any()


def test_a_word_names_a_process(tmp_path):
    assert process_of("vp", tmp_path) == VP()
    assert process_of("tabulated.rule=cosine,steps=50", tmp_path) == Tabulated(
        rule="cosine", steps=50
    )
    assert process_of("edm.sigma_max=50", tmp_path) == VE(sigma_min=0.002, sigma_max=50)
    assert process_of("ddpm.zero_terminal=true", tmp_path) == Tabulated(zero_terminal=True)
    assert process_of("ddpm", tmp_path) == Tabulated(rule="linear", steps=1000)


WRONG = [
    ("cosin", "did you mean 'cosine'?"),
    ("ddmp", "did you mean 'ddpm'?"),
    ("rule=cosine", "write tabulated.rule=cosine"),
    ("tabulated.rul=cosine", "did you mean 'process.rule'?"),
    ("vp.beta_min=-1", "process.beta_min must be greater than 0"),
    ("nowhere.yaml", "there is no file nowhere.yaml"),
]


@pytest.mark.parametrize(("word", "hint"), WRONG)
def test_a_mistake_is_one_sentence(word, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = words(word, capsys=capsys)
    assert (code, out) == (2, "")
    assert hint in err
    assert not list(tmp_path.iterdir())


def test_the_table_says_the_log_snr(tmp_path, capsys):
    """Of the cosine schedule it is 2 log cot(πt/2), and −∞ at the end."""
    out = tmp_path / "deep" / "mine.png"
    code, text, _ = words("cosine", "ddpm", "--out", str(out), capsys=capsys)
    assert code == 0
    row = next(line for line in text.splitlines() if line.startswith("cosine")).split()[1:]
    for t, said in zip(TIMES[:-1], row[:-1], strict=True):
        assert float(said) == pytest.approx(-2 * math.log(math.tan(math.pi * t / 2)), abs=0.005)
    assert row[-1] == "-inf"
    with Image.open(out) as image:
        assert image.width > 2000
    assert str(out) in text


def test_by_default_the_two_tables_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, text, _ = words(capsys=capsys)
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:3]}
    # ᾱ of the last row: 4e-5 for the linear table, 2e-9 for the cosine one.
    assert float(rows["tabulated.rule=linear"][-1]) == pytest.approx(math.log(4.04e-5), abs=0.01)
    assert float(rows["tabulated.rule=cosine"][-1]) == pytest.approx(math.log(2.43e-9), abs=0.01)
    assert (tmp_path / "schedules.png").is_file()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_can_be_drawn(name):
    assert curves({name: PROCESSES[name]}).width > 0
    assert all(math.isfinite(value) for value in log_snrs(PROCESSES[name], (0.001, 0.5, 0.9)))


def test_strips_begin_with_the_image_and_share_their_noise():
    """With σ² = 1 − α² the strip is α x0 + σ ε itself, at any time, with one ε for all."""
    dataset = Digits().load()
    rows = dict(noised({"vp": VP(), "cosine": Cosine()}, dataset, seed=3))
    number = int(dataset.train[0])
    x0 = torch.from_numpy(dataset.x[number] / 8.0 - 1)
    eps = Noise.of(3, "schedules", torch.tensor([number])).normal(0, x0.shape, torch.float64)[0]
    for process, name in ((VP(), "vp"), (Cosine(), "cosine")):
        for t, image in zip(SHOWN, rows[name], strict=True):
            alpha, sigma = process(torch.tensor(t, dtype=torch.float64))
            x = (alpha * x0 + sigma * eps).clamp(-1, 1)[0]
            np.testing.assert_allclose(np.asarray(image), 127.5 * (x.numpy() + 1), atol=0.51)


def test_vectors_are_clouds_of_constant_width():
    rows = dict(noised({"edm": VE(sigma_min=0.002, sigma_max=80)}, Toy(name="moons").load()))
    for cloud in rows["edm"]:
        dark = 255 - np.asarray(cloud, dtype=float)
        where = np.arange(len(dark)) / (len(dark) - 1) * 6 - 3
        # The shade is the root of the count, so this is no variance but of its order; the
        # frame filled evenly, as by what is ever wider, would have 3.
        spread = np.average(where**2, weights=dark.sum(0))
        assert 0.7 < spread < 2
