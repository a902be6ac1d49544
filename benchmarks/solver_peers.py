"""The deterministic solvers of diffusers, k-diffusion and azula, each in all spacings that it has.

They solve one and the same task: a denoiser x̂0(y, r) of y = x/α at r = σ/α, a start, and how often
the denoiser may be asked. Every call is charged, and a solver takes the most steps that it can pay
for. Each is asked at exactly its own σ, not at a rounded time. What else is to their advantage:

* a library that hands back a sample with noise left in it is also entered with one evaluation less
  and the denoiser at the end of it, or with the last x̂0 where that was made at the last σ;
* diffusers' schedulers of variance-preserving processes also solve EDM's problem, on a table of
  betas whose σ/α falls from 80 to 0.002 in equal ratios; k-diffusion and azula solve in y.

    pip install diffusers azula torch scipy
    pip install --no-deps k-diffusion torchsde torchdiffeq trampoline

The environment is that of `peers.py`. A package that is not installed is left out.

    PYTHON benchmarks/solver_peers.py DIM PROCESS SEEDS [REGEX]      prints what is measured as JSON

REGEX says which of them, where not all of them are wanted.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAVE_NOISE = ("DEISMultistepScheduler", "SASolverScheduler")
STRIDES = ("linspace", "trailing", "leading")
NEARLY_ZERO = 1e-6  # the σ/α at which azula's solvers end where they are to end at 0


class Task(NamedTuple):
    """What a solver solves. vp: whether x = y α with α² + σ² = 1, or else x = y.

    x0(y, ratio) is the denoiser, start(ratio) the y at the level where a solver begins, and ratios
    the σ/α of the first and of the last level at which the denoiser is to be asked.
    """

    x0: Callable[[Tensor, float], Tensor]
    start: Callable[[float], Tensor]
    ratios: tuple[float, float]
    vp: bool


class NotSolved(Exception):
    """A solver asks more often than it may, or adds nothing to another that is entered."""


class Asked:
    """The denoiser of a task, with the calls counted and the last one kept."""

    def __init__(self, task: Task, budget: int) -> None:
        self.task, self.budget, self.calls = task, budget, 0
        self.last: tuple[float, Tensor] = (math.nan, torch.empty(0))

    def __call__(self, y: Tensor, ratio: float) -> Tensor:
        self.calls += 1
        if self.calls > self.budget:
            raise NotSolved
        self.last = ratio, self.task.x0(y, ratio)
        return self.last[1]

    def denoised(self, y: Tensor, ratio: float) -> Tensor:
        """What is left of y at `ratio` without its noise; free if that was asked last."""
        if abs(self.last[0] - ratio) <= 1e-5 * ratio:
            return self.last[1]
        return self(y, ratio)


Solver = Callable[[Task, int], Tensor]
failures: Counter[str] = Counter()


def solve(solver: Solver, task: Task, budget: int) -> Tensor | None:
    """The samples, or None where a solver has no such number of steps or breaks down."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            x = solver(task, budget)
    except NotSolved:
        return None
    except Exception as error:
        failures[f"{type(error).__name__}: {error}"[:100]] += 1
        return None
    return x


def solvers(vp: bool) -> dict[str, Solver]:
    """All of them, by name."""
    found: dict[str, Solver] = {}
    for package, make in (
        ("diffusers", diffusers_solvers),
        ("k_diffusion", k_diffusion_solvers),
        ("azula", azula_solvers),
    ):
        try:
            found |= make(vp)
        except ImportError as error:
            print(f"{package} left out: {error}", file=sys.stderr)
    return found


# diffusers ----------------------------------------------------------------------------------------


def diffusers_solvers(vp: bool) -> dict[str, Solver]:
    from peers import allow_torchvision

    allow_torchvision()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    found: dict[str, Solver] = {}

    def add(name: str, kind: str, spacing: str, scale: str, **options: Any) -> None:
        if not hasattr(diffusers, kind):
            return
        scheduler, options = getattr(diffusers, kind), options | _spacing(spacing)
        known = inspect.signature(scheduler.__init__).parameters
        if spacing == "linspace" and "timestep_spacing" not in known:
            options.pop("timestep_spacing")  # it has no other
        if options.keys() - known.keys():
            return
        spaced = f"diffusers {name} {spacing}" if spacing else f"diffusers {name}"
        found[spaced] = _scheduler(scheduler, options, scale, clean=False)
        if options.get("final_sigmas_type") == "sigma_min" or kind in LEAVE_NOISE:
            found[f"{spaced}, denoised"] = _scheduler(scheduler, options, scale, clean=True)

    strides = STRIDES if vp else ("linspace", "trailing")
    sigmas = ("karras", "exponential", *(["beta"] if vp else []))
    zero, least = {"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}
    data: dict[str, Any] = {"prediction_type": "sample"}
    for spacing in (*sigmas, "lu", *strides):
        for order in (2, 3):
            kind, multi = "DPMSolverMultistepScheduler", data | {"solver_order": order}
            add(f"DPM++{order}M", kind, spacing, "vp", **multi, **zero)
            if spacing in STRIDES:  # the same as to zero where the last level is sigma_min
                add(f"DPM++{order}M to sigma_min", kind, spacing, "vp", **multi, **least)
            elif spacing != "lu":
                add(f"DPM++{order}M no lower order", kind, spacing, "vp", lower_order_final=False,
                    **multi, **zero)  # fmt: skip
            add(f"DPM-{order}M", kind, spacing, "vp", algorithm_type="dpmsolver", **multi, **least)
        add("DPM++2M heun", "DPMSolverMultistepScheduler", spacing, "vp", solver_order=2,
            solver_type="heun", **data, **zero)  # fmt: skip
    for spacing in (*sigmas, "linspace"):
        for order in (2, 3):
            kind, single = "DPMSolverSinglestepScheduler", data | {"solver_order": order}
            add(f"DPM++{order}S", kind, spacing, "vp", **single, **zero)
            if spacing in STRIDES:
                add(f"DPM++{order}S to sigma_min", kind, spacing, "vp", **single, **least)
    for spacing in (*sigmas, *strides):
        for order in (1, 2, 3):
            for solver in ("bh1", "bh2"):
                kind, pc = "UniPCMultistepScheduler", {"solver_order": order, "solver_type": solver}
                add(f"UniPC-{order} {solver}", kind, spacing, "vp", **pc, **data, **zero)
                if order > 1:
                    add(f"UniPC-{order} {solver} noise", kind, spacing, "vp", predict_x0=False,
                        **pc, **data, **least)  # fmt: skip
            kind = "DEISMultistepScheduler"
            add(f"DEIS-{order}", kind, spacing, "vp", solver_order=order, **data)
        for orders in ((2, 2), (3, 3), (3, 4)):
            add("SA-{}{}".format(*orders), "SASolverScheduler", spacing, "vp", tau_func=_no_noise,
                predictor_order=orders[0], corrector_order=orders[1], **data)  # fmt: skip
        add("Euler", "EulerDiscreteScheduler", spacing, "ve", **data)
        add("Heun", "HeunDiscreteScheduler", spacing, "ve")
        add("LMS", "LMSDiscreteScheduler", spacing, "ve")
        add("KDPM2", "KDPM2DiscreteScheduler", spacing, "ve")
    for spacing in strides:
        add("DDIM", "DDIMScheduler", spacing, "vp", clip_sample=False, **data)
        add("PNDM", "PNDMScheduler", spacing, "vp", skip_prk_steps=True, set_alpha_to_one=True)
    if not vp:
        for spacing in ("karras", "exponential"):
            named = {"sigma_schedule": spacing}
            add(f"EDMEuler {spacing}", "EDMEulerScheduler", "", "edm", **named)
            for order in (2, 3):
                kind, edm = "EDMDPMSolverMultistepScheduler", named | {"solver_order": order}
                for solver in ("midpoint", "heun"):
                    add(f"EDM-DPM++{order}M {solver} {spacing}", kind, "", "edm",
                        solver_type=solver, **edm)  # fmt: skip
    return found


def _spacing(name: str) -> dict[str, Any]:
    if name in STRIDES:
        return {"timestep_spacing": name}
    return {} if not name else {f"use_{name}_{'lambdas' if name == 'lu' else 'sigmas'}": True}


def _no_noise(t: Any) -> float:
    return 0.0


def _scheduler(kind: Any, options: dict[str, Any], scale: str, *, clean: bool) -> Solver:
    """A scheduler as a solver. scale: the coordinates that its samples have, x = y of `ve`,
    x = y/√(1 + r²) of `vp`, and `edm`, x = y, where the network's output is EDM's F.

    clean: whether the noise that its last level leaves is taken out, which may cost a call."""

    def run(task: Task, budget: int) -> Tensor:
        scheduler = _fitted(kind, options, task, scale)
        steps = _affordable(scheduler, budget)
        ends = _end(scheduler)
        asked = Asked(task, budget)
        if clean and abs(_ratio(scheduler, len(scheduler.timesteps) - 1) / ends - 1) > 1e-5:
            steps = _affordable(scheduler, budget - 1)
        if not steps:
            raise NotSolved
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        first = _ratio(scheduler, 0)
        x = task.start(first) * _shrink(first, scale)
        for i, t in enumerate(scheduler.timesteps):
            ratio = _ratio(scheduler, i)
            y = x / _shrink(ratio, scale)
            x0 = asked(y, ratio)
            if scale == "edm":
                scheduler.scale_model_input(x, t)
                output = (x0 - scheduler.precondition_outputs(x, 0 * x, ratio)) / (
                    ratio * 0.5 / math.sqrt(ratio**2 + 0.25)
                )
            elif scheduler.config.prediction_type == "sample":
                output = x0
            else:
                output = (y - x0) / ratio
            if scale == "ve":
                scheduler.scale_model_input(x, t)  # which only then knows at which step it is
            x = scheduler.step(output, t, x, return_dict=False)[0]
        y = x if ends == 0 else x / _shrink(ends, scale)
        return asked.denoised(y, ends) if clean else x

    return run


def _fitted(kind: Any, options: dict[str, Any], task: Task, scale: str) -> Any:
    """The scheduler for a task: of the usual betas, which are those of `vp` in steps of 1/1000, or
    with the betas or sigmas of EDM."""
    high, low = task.ratios
    if scale == "edm":
        return kind(sigma_min=low, sigma_max=high, sigma_data=0.5, **options)
    betas: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02}
    if not task.vp:
        ratios = torch.logspace(math.log10(low), math.log10(high), 1000, dtype=torch.float64)
        kept = 1 / (1 + ratios**2)
        before = torch.cat((torch.ones(1, dtype=torch.float64), kept[:-1]))
        betas = {"trained_betas": (1 - kept / before).tolist()}
    return kind(num_train_timesteps=1000, **betas, **options)


def _affordable(scheduler: Any, budget: int) -> int:
    """Set the most steps whose evaluations are within the budget; 0 where there are none."""
    steps = budget
    while steps > 0:
        scheduler.set_timesteps(steps)
        asked = len(scheduler.timesteps)
        if asked <= budget:
            return steps
        steps = (budget + 1) // 2 if asked == 2 * steps - 1 else steps - 1
    return 0


def _ratio(scheduler: Any, i: int) -> float:
    """σ/α at which the model is asked in call i."""
    if hasattr(scheduler, "sigmas_interpol"):  # KDPM2: calls 1, 3, ... lie between two levels
        return float((scheduler.sigmas_interpol if i % 2 else scheduler.sigmas)[i])
    if getattr(scheduler, "sigmas", None) is not None:
        return float(scheduler.sigmas[i])
    kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[i])])
    return math.sqrt((1 - kept) / kept)


def _end(scheduler: Any) -> float:
    """σ/α at which the samples are handed back."""
    return float(scheduler.sigmas[-1]) if getattr(scheduler, "sigmas", None) is not None else 0.0


def _shrink(ratio: float, scale: str) -> float:
    return 1 / math.sqrt(1 + ratio**2) if scale == "vp" else 1.0


# k-diffusion --------------------------------------------------------------------------------------


def k_diffusion_solvers(vp: bool) -> dict[str, Solver]:
    sampling = _k_sampling()
    grids: dict[str, Callable[[int, float, float], Tensor]] = {
        "karras": lambda n, low, high: sampling.get_sigmas_karras(n, low, high),
        "exponential": lambda n, low, high: sampling.get_sigmas_exponential(n, low, high),
    }
    for rho in (0.5, 2.0, 3.0):
        grids[f"polyexponential {rho:g}"] = lambda n, low, high, rho=rho: (
            sampling.get_sigmas_polyexponential(n, low, high, rho)
        )
    if vp:
        grids["vp"] = lambda n, low, high: sampling.get_sigmas_vp(n)
    still = {"eta": 0.0, "s_noise": 0.0, "noise_sampler": lambda a, b: 0.0}
    kinds: dict[str, tuple[str, int, dict[str, Any]]] = {
        "euler": ("sample_euler", 1, {}),
        "heun": ("sample_heun", 2, {}),
        "dpm_2": ("sample_dpm_2", 2, {}),
        "dpmpp_2s": ("sample_dpmpp_2s_ancestral", 2, still),
        "dpmpp_sde eta 0": ("sample_dpmpp_sde", 2, still),
        "dpmpp_2m": ("sample_dpmpp_2m", 1, {}),
        "dpmpp_2m_sde eta 0": ("sample_dpmpp_2m_sde", 1, still),
        "dpmpp_2m_sde heun eta 0": ("sample_dpmpp_2m_sde", 1, still | {"solver_type": "heun"}),
        "dpmpp_3m_sde eta 0": ("sample_dpmpp_3m_sde", 1, still),
    } | {f"lms {order}": ("sample_lms", 1, {"order": order}) for order in (2, 3, 4)}
    found: dict[str, Solver] = {}
    for name, (function, cost, options) in kinds.items():
        if not hasattr(sampling, function):
            continue
        for spacing, grid in grids.items():
            found[f"k-diffusion {name} {spacing}"] = _k_solver(
                getattr(sampling, function), cost, grid, options
            )
    found["k-diffusion dpm_fast"] = _dpm_fast(sampling)
    return found


def _k_sampling() -> Any:
    """The sampling module alone: the package as a whole asks for much that no solver uses."""
    from peers import allow_torchvision

    allow_torchvision()
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise ImportError("k_diffusion is not installed")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def _k_solver(
    function: Any, cost: int, grid: Callable[[int, float, float], Tensor], options: dict[str, Any]
) -> Solver:
    def run(task: Task, budget: int) -> Tensor:
        high, low = task.ratios
        asked = Asked(task, budget)
        steps = budget if cost == 1 else (budget + 1) // 2  # the last one of two is Euler's
        sigmas = grid(steps, low, high).double()

        def model(y: Tensor, sigma: Tensor) -> Tensor:
            return asked(y, float(sigma[0]))

        start = task.start(float(sigmas[0]))
        return function(model, start, sigmas, disable=True, **options)  # type: ignore[no-any-return]

    return run


def _dpm_fast(sampling: Any) -> Solver:
    def run(task: Task, budget: int) -> Tensor:
        high, low = task.ratios
        asked = Asked(task, budget)

        def model(y: Tensor, sigma: Tensor) -> Tensor:
            return asked(y, float(sigma[0]))

        y = sampling.sample_dpm_fast(
            model, task.start(high), low, high, budget - 1, disable=True, s_noise=0.0
        )
        return asked.denoised(y, low)

    return run


# azula --------------------------------------------------------------------------------------------


def azula_solvers(vp: bool) -> dict[str, Solver]:
    import azula.sample

    grids = {"ve": _geometric, "karras": _karras, "rectified": _rectified}
    if vp:
        grids["vp"] = _linear_beta
    kinds: list[tuple[str, str, int, dict[str, Any]]] = [
        ("DDIM", "DDIMSampler", 1, {}),  # and so are all the others of order 1
        ("Heun", "HeunSampler", 2, {}),
    ]
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        for order in (2, 3):
            kinds.append((f"{name}{order}", f"{name}Sampler", 1, {"order": order}))
    found: dict[str, Solver] = {}
    for name, kind, cost, options in kinds:
        if not hasattr(azula.sample, kind):
            continue
        for spacing, grid in grids.items():
            for end in ("", "to zero", "denoised"):
                found[f"azula {name} {spacing}{', ' if end else ''}{end}"] = _azula(
                    getattr(azula.sample, kind), cost, grid, end, options
                )
    return found


Ratios = Callable[[float, float, Tensor], Tensor]
"""σ/α from the high (t = 1) to the low (t = 0)."""


def _geometric(high: float, low: float, t: Tensor) -> Tensor:
    return low * (high / low) ** t


def _karras(high: float, low: float, t: Tensor) -> Tensor:
    first, last = high ** (1 / 7), low ** (1 / 7)
    return (last + (first - last) * t) ** 7


def _rectified(high: float, low: float, t: Tensor) -> Tensor:
    """σ = t, α = 1 − t, cut off at the ends."""
    first, last = high / (1 + high), low / (1 + low)
    sigma = last + (first - last) * t
    return sigma / (1 - sigma)


def _linear_beta(high: float, low: float, t: Tensor) -> Tensor:
    time = 1e-3 + (1 - 1e-3) * t
    return torch.sqrt(torch.expm1(0.5 * time**2 * 19.9 + 0.1 * time))


def _azula(kind: Any, cost: int, grid: Ratios, end: str, options: dict[str, Any]) -> Solver:
    from azula.denoise import Denoiser, DiracPosterior

    def run(task: Task, budget: int) -> Tensor:
        high, low = task.ratios
        steps = (budget - (end == "denoised")) // cost
        if steps < 1 + (end == "to zero"):
            raise NotSolved
        asked = Asked(task, budget)

        def ratio(t: Tensor) -> Tensor:
            t = t.double()
            if end != "to zero":
                return grid(high, low, t)
            # The last of the steps leads from the smallest level to nearly none.
            inner = ((steps * t - 1) / (steps - 1)).clamp(min=0)
            return torch.where(t < 0.5 / steps, NEARLY_ZERO, grid(high, low, inner))

        class Exact(Denoiser):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.schedule = lambda t: (torch.ones_like(t), ratio(t))

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                return DiracPosterior(mean=asked(x_t, float(ratio(t))))

        sampler = kind(Exact(), steps=steps, silent=True, dtype=torch.float64, **options)
        y = sampler(task.start(high))
        return asked.denoised(y, low) if end == "denoised" else y

    return run


def measure(
    dim: int, process: str, seeds: list[int], only: str = ""
) -> dict[int, dict[str, dict[str, tuple[float, float]]]]:
    """By seed, solver and budget: median and RMS error on a problem of `mixtures`."""
    from mixtures import BUDGETS, Problem

    problem = Problem(dim, process, *seeds)
    task = Task(problem.x0, problem.start, problem.ratios, process == "vp")
    found: dict[int, dict[str, dict[str, tuple[float, float]]]] = {seed: {} for seed in seeds}
    wanted = {name: one for name, one in solvers(task.vp).items() if re.search(only, name)}
    for name, solver in wanted.items():
        for budget in BUDGETS:
            x = solve(solver, task, budget)
            for seed, errors in problem.errors(x).items() if x is not None else ():
                if math.isfinite(errors[1]):
                    found[seed].setdefault(name, {})[str(budget)] = errors
    for failure, count in failures.items():
        print(f"{count} times: {failure}", file=sys.stderr)
    return found


def main() -> None:
    dim, process, seeds, *only = sys.argv[1:]
    torch.set_num_threads(1)
    print(json.dumps(measure(int(dim), process, [int(seed) for seed in seeds.split(",")], *only)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
