"""One step of training, taken apart: what is read, what is updated, and when it is refused."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn

from ornstein import training
from ornstein.data.info import Batch
from ornstein.data.sources import Digits, Toy
from ornstein.data.stream import Stream
from ornstein.diffusion.model import Diffusion
from ornstein.errors import ConfigError, NumericsError, OutOfMemory
from ornstein.nn.layers import Dropout
from ornstein.nn.networks import MLP, UNet
from ornstein.noise import Noise
from ornstein.objectives.base import Loss
from ornstein.optim import HalfLife, Optim, Power
from ornstein.recipe import Recipe
from ornstein.training import Learner, TrainState, flops_per_sample, precision, train

CPU = torch.device("cpu")
OPTIM = Optim(
    lr=1e-2,
    batch=10,
    samples=60,
    warmup=20,
    averages=(HalfLife(samples=30), Power(width=0.1)),
    clip=None,
)


class Points:
    """Endless points in three dimensions, and a list of what was asked for.

    broken: position -> what stands there instead; an exception is raised.
    """

    def __init__(self, broken=None):
        self.broken, self.asked = broken or {}, []

    def at(self, position, count):
        ids = torch.arange(position, position + count)
        self.asked += ids.tolist()
        x = Noise.of(0, "points", ids).normal(0, (3,))
        for i in set(ids.tolist()) & set(self.broken):
            if isinstance(self.broken[i], Exception):
                raise self.broken[i]
            x[i - position] = self.broken[i]
        return Batch(x, ids)


class Fit:
    """(model(x) − Σx)², with two metrics and sums; what it is told afterwards is kept."""

    range = None

    def __init__(self):
        self.told = []

    def __call__(self, model, batch, context):
        gap = model(batch.x) - batch.x.sum(1, keepdim=True)
        metrics = {"gap": (gap.abs().sum(), len(gap)), "noise": self.noise(context, len(gap))}
        return Loss(gap.square().mean(1), metrics, {"x": batch.x.sum(0), "count": gap.numel()})

    def noise(self, context, count):
        return context.noise.normal(0, (1,)).sum(), count


class Told(Fit):
    """The same with a hook after each update."""

    def __call__(self, model, batch, context):
        loss = super().__call__(model, batch, context)
        return loss._replace(stats={"x": batch.x.sum(0), "count": torch.tensor(len(batch.x))})

    def after_step(self, model, stats, context):
        weight = model[0].weight.detach().clone()
        self.told.append((context.step, context.progress, stats, weight))


class Plain(Fit):
    def __call__(self, model, batch, context):
        return super().__call__(model, batch, context)._replace(stats={})


def linear(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def state_of(model, optim=OPTIM, objective=None):
    return TrainState(Learner(model, objective or Plain()), optim)


def everything(state):
    """All that training changes, as copies."""
    kept = {"weights": state.learner, **state.averages}
    modules = {k: {n: t.clone() for n, t in m.state_dict().items()} for k, m in kept.items()}
    return modules, copy.deepcopy(state.optimizer.state_dict()), state.step, state.samples


def same(a, b):
    """Bit for bit, through dictionaries, lists and tuples."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("data")]


def run(state, source, optim=OPTIM, seed=0):
    return list(train(state, source, optim, optim.samples, seed))


# --- averages ----------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.norm(x))


def test_averages_are_notes_eq_1_18_and_carry_buffers():
    """θ̄ ← β θ̄ + (1 − β) θ for weights and running statistics alike; a counter is copied."""
    state = state_of(Normed())
    direct = {a.name: everything(state)[0]["weights"] for a in OPTIM.averages}
    for event in train(state, Points(), OPTIM, 60, 0):
        now = state.learner.state_dict()
        for average in OPTIM.averages:
            beta = average.decay(event.samples, 10)
            for name, value in direct[average.name].items():
                if value.is_floating_point():
                    direct[average.name][name] = beta * value.double() + (1 - beta) * now[name]
                else:
                    direct[average.name][name] = now[name].clone()
    assert int(now["model.norm.num_batches_tracked"]) == 6
    for average, values in direct.items():
        kept = state.averages[average].state_dict()
        assert int(kept["model.norm.num_batches_tracked"]) == 6
        for name, value in values.items():
            torch.testing.assert_close(kept[name].double(), value.double(), atol=1e-6, rtol=1e-5)
        assert not torch.equal(kept["model.norm.running_mean"], now["model.norm.running_mean"])


def test_a_power_average_is_the_weighted_past():
    """Σ θ_k ((n_k/N)^(γ+1) − (n_{k−1}/N)^(γ+1)), with the last batch cut."""
    average = Power(width=0.15)
    optim = OPTIM.model_copy(update={"averages": (average,), "samples": 57})
    state, past, seen = state_of(linear(), optim), [], [0]
    for event in train(state, Points(), optim, 57, 0):
        past.append(state.learner.model[0].weight.detach().double().clone())
        seen.append(event.samples)
    share = (np.array(seen) / 57) ** (average.gamma + 1)
    expected = sum(w * p for w, p in zip(np.diff(share), past, strict=True))
    kept = state.averages[average.name].model[0].weight.double()
    torch.testing.assert_close(kept, expected, atol=1e-6, rtol=1e-5)


def test_averages_are_ready_to_use_and_not_trained():
    state = state_of(Normed())
    run(state, Points())
    for kept in state.averages.values():
        assert not any(p.requires_grad for p in kept.parameters())
        assert not any(module.training for module in kept.modules())


# --- what is not finite --------------------------------------------------------------------------


class Root(Fit):
    """√|model(x)|: its value at 0 is 0, its gradient there is not finite."""

    def __call__(self, model, batch, context):
        return Loss(model(batch.x).squeeze(1).abs().sqrt())


def through_zero():
    return nn.Sequential(nn.Linear(3, 1, bias=False))


BROKEN = {
    "a NaN in the data": (linear, Plain, torch.nan, "loss nan"),
    "an infinity in the data": (linear, Plain, torch.inf, "loss "),
    "a gradient alone": (through_zero, Root, 0.0, "gradient norm nan"),
}


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_finite_stops_before_the_update(case, micro):
    """Weights, averages, optimizer and counters are those after the last sound update."""
    build, objective, value, found = BROKEN[case]
    optim = OPTIM.model_copy(update={"micro_batch": micro})
    state = state_of(build(), optim, objective())
    updates = train(state, Points({37: torch.tensor(value)}), optim, 60, 0)
    for _ in range(3):
        next(updates)
    before = everything(state)
    with pytest.raises(NumericsError) as caught:
        next(updates)
    assert state.step == 3
    assert same(everything(state), before)
    message = str(caught.value)
    assert message.startswith("stopped before update 4: ")
    assert found in message
    assert "37" in message
    assert "optim.lr" in message
    assert caught.value.code == 6
    assert not readers()


def test_a_first_update_that_is_not_finite_leaves_the_start():
    state = state_of(linear())
    before = everything(state)
    with pytest.raises(NumericsError, match="before update 1"):
        run(state, Points({3: torch.tensor(torch.nan)}))
    assert same(everything(state), before)


def test_training_goes_on_from_a_refused_update_as_if_it_had_not_been():
    state = state_of(linear())
    with pytest.raises(NumericsError):
        run(state, Points({37: torch.tensor(torch.nan)}))
    run(state, Points())
    unharmed = state_of(linear())
    run(unharmed, Points())
    assert same(everything(state), everything(unharmed))


def test_the_sample_that_is_not_finite_is_named_in_a_large_batch():
    optim = OPTIM.model_copy(update={"batch": 50})
    with pytest.raises(NumericsError, match=r"\b41\b"):
        run(state_of(linear(), optim), Points({41: torch.tensor(torch.nan)}), optim)


# --- precision and size of an update -------------------------------------------------------------


def processor(monkeypatch, bf16):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch):
    processor(monkeypatch, bf16=False)
    assert precision("auto", CPU) == precision("fp32", CPU) == "fp32"
    with pytest.raises(ConfigError, match="emulated on this cpu device.*optim.precision=auto"):
        precision("bf16", CPU)
    state, source = state_of(linear()), Points()
    before = everything(state)
    with pytest.raises(ConfigError, match="emulated"):
        run(state, source, OPTIM.model_copy(update={"precision": "bf16"}))
    assert same(everything(state), before)
    assert not source.asked
    assert not readers()


def test_bf16_where_the_processor_has_it(monkeypatch):
    """Asked for, it is used; `auto` stays fp32, so that a run is the same on any processor."""
    processor(monkeypatch, bf16=True)
    assert precision("bf16", CPU) == "bf16"
    assert precision("auto", CPU) == precision("fp32", CPU) == "fp32"


def test_the_gradient_is_clipped_and_its_norm_is_reported_unclipped():
    """m₁ = (1 − β₁) g min(1, clip/‖g‖), AdamW's first moment after one update."""
    norms = {}
    for clip in (None, 0.05, 1e6):
        optim = OPTIM.model_copy(update={"clip": clip, "samples": 10})
        state = state_of(linear(), optim)
        (event,) = run(state, Points(), optim)
        moments = [s["exp_avg"] for s in state.optimizer.state.values()]
        norms[clip] = torch.cat([m.flatten() for m in moments]).norm().item() / 0.1
        assert event.grad_norm.item() > 0.5
        expected = min(event.grad_norm.item(), clip or torch.inf)
        assert norms[clip] == pytest.approx(expected, rel=1e-4)
    assert norms[None] == norms[1e6]


def test_the_first_update_is_adamw_s():
    """θ ← θ − lr (1 − lr·0) sign-like m̂/(√v̂ + ε): the same as torch's own on Σ loss/B."""
    optim = OPTIM.model_copy(update={"samples": 10, "warmup": 0, "weight_decay": 0.1})
    state, reference = state_of(linear(), optim), linear()
    run(state, Points(), optim)
    adam = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    x = Points().at(0, 10).x
    (reference(x) - x.sum(1, keepdim=True)).square().mean().backward()
    adam.step()
    for ours, theirs in zip(state.learner.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


# --- samples, positions, batches ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "ends"), [(25, [10, 20, 25]), (30, [10, 20, 30]), (3, [3]), (10, [10])]
)
def test_the_last_batch_is_cut(total, ends):
    """Exactly `total` samples are asked for, each once and in order."""
    source, state = Points(), state_of(linear())
    events = list(train(state, source, OPTIM, total, 0))
    assert [event.samples for event in events] == ends
    assert [event.step for event in events] == list(range(1, len(ends) + 1))
    assert source.asked == list(range(total))
    assert (state.samples, state.step) == (total, len(ends))
    assert not list(train(state, source, OPTIM, total, 0))  # nothing is left to do
    assert len(source.asked) == total


def test_a_cut_batch_is_a_mean_over_its_own_samples():
    """The loss of the last 5 samples is their mean, not a tenth of their sum."""
    state = state_of(linear())
    first, last = train(state, Points(), OPTIM.model_copy(update={"lr": 1e-12}), 15, 0)
    model = linear()
    with torch.no_grad():
        for event, ids in ((first, (0, 10)), (last, (10, 5))):
            x = Points().at(*ids).x
            expected = (model(x) - x.sum(1, keepdim=True)).square().mean()
            torch.testing.assert_close(event.loss, expected)


@pytest.mark.parametrize("micro", [1, 3, 7, 10, 99])
def test_events_are_the_same_for_any_micro_batch(micro):
    whole, parts = Points(), Points()
    optim = OPTIM.model_copy(update={"micro_batch": micro, "samples": 45})
    expected = list(train(state_of(linear()), whole, OPTIM, 45, 0))
    found = list(train(state_of(linear()), parts, optim, 45, 0))
    assert parts.asked == whole.asked == list(range(45))
    for a, b in zip(found, expected, strict=True):
        assert (a.step, a.samples, a.lr) == (b.step, b.samples, b.lr)
        torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.grad_norm, b.grad_norm, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.metrics, b.metrics, rtol=1e-4, atol=1e-5)


def test_noise_is_keyed_by_the_step_and_the_position_in_the_batch():
    """The `noise` of an event is the mean of what positions 0 ... 9 draw at that step."""
    for event in train(state_of(linear()), Points(), OPTIM, 60, 5):
        noise = Noise.of(5, "train", 10).at(event.step - 1)
        expected = noise.normal(0, (1,)).mean()
        torch.testing.assert_close(event.metrics["noise"], expected)


@pytest.mark.parametrize("shape", ["scalar", "column", "short"])
def test_an_objective_must_return_one_loss_per_sample(shape):
    class Wrong(Plain):
        def __call__(self, model, batch, context):
            loss = super().__call__(model, batch, context).per_sample
            return Loss({"scalar": loss.sum(), "column": loss[:, None], "short": loss[1:]}[shape])

    state = state_of(linear(), objective=Wrong())
    before = everything(state)
    with pytest.raises(ValueError, match="for 10 samples; it must return one loss per sample"):
        run(state, Points())
    assert same(everything(state), before)
    assert not readers()


@pytest.mark.parametrize("micro", [None, 3])
def test_after_step_sees_sums_over_the_global_batch(micro):
    """After the update: its weights, the number of updates done, and sums over all samples."""
    optim = OPTIM.model_copy(update={"micro_batch": micro, "samples": 25})
    objective = Told()
    state, weights = state_of(linear(), optim, objective), []
    for _ in train(state, Points(), optim, 25, 0):
        weights.append(state.learner.model[0].weight.detach().clone())
    assert [(step, progress) for step, progress, *_ in objective.told] == [
        (1, 0.4),
        (2, 0.8),
        (3, 1.0),
    ]
    for (_, _, stats, seen), weight, part in zip(
        objective.told, weights, [(0, 10), (10, 10), (20, 5)], strict=True
    ):
        assert int(stats["count"]) == part[1]
        torch.testing.assert_close(stats["x"], Points().at(*part).x.sum(0))
        assert torch.equal(seen, weight)


# --- reading ahead --------------------------------------------------------------------------------


@pytest.mark.parametrize("cheap", [0.0, 1e9])
def test_the_source_is_read_one_step_ahead(cheap, monkeypatch):
    """When an update is handed out the next batch is being read, and none after it."""
    monkeypatch.setattr(training, "CHEAP", cheap)
    source, optim = Points(), OPTIM.model_copy(update={"micro_batch": 4})
    for event in train(state_of(linear(), optim), source, optim, 60, 0):
        assert len(source.asked) <= min(event.samples + 10, 60)
        assert source.asked == list(range(len(source.asked)))
    assert source.asked == list(range(60))


@pytest.mark.parametrize("position", [0, 9, 30, 59])
def test_an_error_of_the_source_reaches_the_caller(position):
    """After the updates that do not need the sample, and no thread is left."""
    updates = train(state_of(linear()), Points({position: OSError("unplugged")}), OPTIM, 60, 0)
    for _ in range(position // 10):
        next(updates)
    with pytest.raises(OSError, match="unplugged"):
        next(updates)
    assert not readers()


def test_what_is_read_at_once_is_read_without_a_thread(monkeypatch):
    monkeypatch.setattr(training, "CHEAP", 1e9)
    for _ in train(state_of(linear()), Points(), OPTIM, 60, 0):
        assert not readers()


def test_leaving_the_loop_leaves_no_thread(monkeypatch):
    monkeypatch.setattr(training, "CHEAP", 0.0)
    events = train(state_of(linear()), Points(), OPTIM, 60, 0)
    for event in events:
        if event.step == 4:
            assert readers()
            break
    events.close()
    assert not readers()
    for _ in train(state_of(linear()), Points(), OPTIM, 60, 0):
        break  # without a name the generator ends here
    assert not readers()


def test_nothing_is_read_before_the_first_update_is_asked_for():
    source = Points()
    events = train(state_of(linear()), source, OPTIM, 60, 0)
    assert not source.asked
    assert not readers()
    events.close()


# --- randomness, and what an update costs ---------------------------------------------------------


def test_training_leaves_the_generators_of_others_alone():
    """Weights, data, noise and dropout are keyed; torch's and numpy's states do not move."""
    torch.manual_seed(3)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    recipe = Recipe(
        name="small",
        data=Toy(name="moons", count=100),
        model=Diffusion(network=MLP(width=8, depth=1, dropout=0.3)),
        optim=OPTIM,
    )
    data = recipe.data.load()
    learner = recipe.learner(data.info, lambda _: None)

    list(train(TrainState(learner, OPTIM), Stream(data, 0), OPTIM, 30, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    # Whatever the generators hold, the weights are the same.
    torch.manual_seed(99)
    again = recipe.learner(data.info, lambda _: None)
    list(train(TrainState(again, OPTIM), Stream(data, 0), OPTIM, 30, 0))
    assert same(again.state_dict(), learner.state_dict())


def test_dropout_is_keyed_by_position():
    """The same masks, so the same weights, for any micro-batch."""

    def after(micro):
        model = nn.Sequential(linear()[0], Dropout(0.5), linear()[2])
        optim = OPTIM.model_copy(update={"micro_batch": micro})
        state = state_of(model, optim)
        run(state, Points(), optim)
        return torch.cat([p.flatten() for p in state.learner.parameters()])

    torch.testing.assert_close(after(3), after(None), rtol=1e-4, atol=1e-5)


def test_operations_of_linear_layers_are_counted_exactly():
    """Forward 2·in·out; backward the same for the weight, and for the input where it is needed:
    4·3·4 for the first layer and 6·4·1 for the second."""
    learner = Learner(linear(), Plain())
    before = copy.deepcopy(learner.state_dict())
    assert flops_per_sample(learner, Points(), 0) == 4 * 3 * 4 + 6 * 4 * 1
    assert same(learner.state_dict(), before)
    assert all(p.grad is None for p in learner.parameters())
    wide = Learner(nn.Sequential(nn.Linear(3, 1, bias=False)), Plain())
    assert flops_per_sample(wide, Points(), 0) == 4 * 3


def test_frozen_layers_have_no_backward_to_count():
    model = linear()
    model[0].requires_grad_(False)
    assert flops_per_sample(Learner(model, Plain()), Points(), 0) == 2 * 3 * 4 + 4 * 4 * 1


# --- memory ------------------------------------------------------------------------------------


class Hungry(Fit):
    """Runs out of memory where more than `most` samples come at once, from a step on."""

    def __init__(self, most, first=0, error=None, half_way=False):
        super().__init__()
        self.most, self.first = most, first
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.half_way = half_way
        self.sizes = []

    def __call__(self, model, batch, context):
        self.sizes.append((context.step, len(batch.x)))
        if len(batch.x) > self.most and context.step >= self.first:
            if self.half_way:  # with part of the gradient accumulated already
                model(batch.x).sum().backward()
            raise self.error
        return super().__call__(model, batch, context)._replace(stats={})


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("half_way", [False, True])
def test_out_of_memory_halves_the_micro_batch_once_and_changes_no_result(error, first, half_way):
    objective = Hungry(OPTIM.batch // 2, first, error, half_way)
    state, expected = state_of(linear(), objective=objective), state_of(linear())
    events = run(state, Points())
    reference = run(expected, Points())
    assert len(events) == len(reference) > 3
    assert [e.micro_batch for e in events] == [
        None if i < first else OPTIM.batch // 2 for i in range(len(events))
    ]
    for event, other in zip(events, reference, strict=True):
        torch.testing.assert_close(event.loss, other.loss)
        torch.testing.assert_close(event.grad_norm, other.grad_norm)
        assert event.metrics.keys() == other.metrics.keys()
    for mine, theirs in zip(state.learner.parameters(), expected.learner.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    tried = [size for step, size in objective.sizes if step == first]
    assert tried == [OPTIM.batch, OPTIM.batch // 2, OPTIM.batch // 2]


@pytest.mark.parametrize("most", [OPTIM.batch // 4, 0])
def test_half_that_is_too_much_says_what_to_change(most):
    state = state_of(linear(), objective=Hungry(most))
    before = everything(state)
    with pytest.raises(OutOfMemory, match=r"already halved; write optim\.micro_batch=\d+, "):
        run(state, Points())
    assert same(everything(state), before)


def test_a_single_sample_cannot_be_halved():
    optim = OPTIM.but(micro_batch=1)
    state = state_of(linear(), optim, Hungry(0))
    with pytest.raises(
        OutOfMemory, match="out of memory with 1 samples at a time; write optim.recompute"
    ):
        run(state, Points(), optim)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    state = state_of(linear(), objective=Hungry(0, error=RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(state, Points())


# --- recomputing -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_recomputing_keeps_less_and_changes_nothing(kind):
    """Bit for bit the same weights, dropout included, while less is kept for the backward pass."""
    data = Digits().load() if kind == "unet" else Toy(name="moons", count=200).load()
    network = (
        UNet(channels=(8, 16), blocks=1, dropout=0.2)
        if kind == "unet"
        else MLP(width=16, depth=3, dropout=0.2)
    )
    recipe = Recipe(name="x", data=Digits(), model=Diffusion(network=network))

    def trained(recompute):
        optim = Optim(batch=12, samples=48, micro_batch=8, recompute=recompute)
        learner = recipe.learner(data.info, lambda _: None)
        state, kept = TrainState(learner, optim), []

        def keep(tensor):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            for event in train(state, Stream(data, 0, (-1.0, 1.0)), optim, 48, 0):
                if event.step == 1:
                    first = sum(kept)
        return state.learner.state_dict(), first

    plain, all_of_it = trained(False)
    again, less = trained(True)
    assert same(plain, again)
    assert less < 0.6 * all_of_it
