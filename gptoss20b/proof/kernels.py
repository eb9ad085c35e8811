"""Compile the kernels of every fused function that a configuration calls, for a GPU that does not exist."""

from __future__ import annotations

import copy
import functools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

from ..config import Config
from .command import check_supported, prepare_process
from .guard import ProofError
from .kernel_report import Direction, Kernel, KernelReport, Resources
from .targets import Target, find_target
from .triton_stand_ins import ENVIRONMENT, fake_device

# A windowed and a full layer. Other layers call the same functions with the same shapes.
LAYERS = 2
# Rows of the experts over their mean, a step each: the second number of rows makes torch compile for any number.
IMBALANCES = (1.0, 1.5)


class KernelCompiler:
    """Inductor and Triton for a target, which collect the kernels that they compile.

    Attributes:
        kernels: in the order in which a device would load them.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kernels: list[Kernel] = []
        self._graphs: Counter[tuple[str, Direction]] = Counter()
        self._compiling: tuple[str, Direction] = ("", "forward")

    def install(self, stack: ExitStack) -> None:
        """Put the stand-ins of the target's device in place."""
        fake_device(stack, self.target, self._add)

    def backend(
        self, name: str, run_graph: Callable[[Any, Any], Any], options: dict[str, Any] | None = None
    ) -> Callable[[Any, Any], Any]:
        """Return a backend for torch.compile of one function, that compiles a graph and then calls ``run_graph``.

        ``run_graph(graph, inputs)`` returns what runs in place of the kernels, which no device here would run.
        ``options`` are inductor's.
        """
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def compile_graph(graph: Any, inputs: Any, **options: Any) -> Any:
            original = copy.deepcopy(graph)
            self._compiling = name, "backward" if options.get("is_backward") else "forward"
            self._graphs[self._compiling] += 1
            compile_fx_inner(graph, inputs, **options)
            return run_graph(original, inputs)

        return functools.partial(compile_fx, inner_compile=compile_graph, config_patches=options)

    def _add(self, name: str, warps: int, stages: int, resources: Resources) -> None:
        function, direction = self._compiling
        number = re.search(r"_(\d+)$", name)
        self.kernels.append(
            Kernel(
                function=function,
                direction=direction,
                graph=self._graphs[self._compiling],
                number=int(number[1]) if number else 0,
                name=name,
                warps=warps,
                stages=stages,
                resources=resources,
            )
        )


def compile_kernels(config: Config, target: Target) -> KernelReport:
    """Compile every fused function that steps and an evaluation of a configuration call.

    The caller sets `ENVIRONMENT`, and folders for the caches, before torch's compiler is imported.

    Raises:
        ProofError: this machine cannot compile, or a kernel does not fit on the target.
    """
    import torch
    from torch._inductor.exc import InductorError

    from ..trainer import Trainer
    from .fake_cuda import DEVICE
    from .stand_ins import fake_gpu
    from .trace import make_batches

    config = config.model_copy(update={"model": config.model.model_copy(update={"num_layers": LAYERS})})
    compiler = KernelCompiler(target)
    try:
        with fake_gpu(config, properties=target.properties, kernels=compiler) as gpu:
            trainer = Trainer(config, "torch", DEVICE, seed=1)
            for imbalance in IMBALANCES:
                gpu.routing.imbalance = imbalance
                trainer.step(make_batches(config, config.accumulation_steps))
            trainer.model.eval()
            with torch.no_grad():
                trainer._run(make_batches(config, 1), 1, forward_only=True)
            del trainer
    except InductorError as error:
        function, direction = compiler._compiling
        raise ProofError(
            f"{function}, {direction}: does not compile for {target.name}: {str(error).splitlines()[0]}"
        ) from error
    return KernelReport(
        target=target.name,
        model=config.model.variant,
        shared_limit_bytes=target.shared_limit,
        kernels=compiler.kernels,
    )


def run(config: Config, target_name: str | None) -> KernelReport:
    """Compile the kernels of a configuration for a target, by default that of its DGXSYSTEM.

    Raises:
        ProofError: the configuration has no kernels of ours, the target is unknown, or this machine cannot compile.
    """
    check_supported(config)
    (report,) = compile_in_processes([(config, find_target(config.submission.system, target_name))])
    return report


def compile_in_processes(jobs: list[tuple[Config, Target]]) -> list[KernelReport]:
    """Compile each configuration in its own process, two at a time, without the caches of earlier runs."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(_compile, *zip(*jobs, strict=True)))


def _compile(config: Config, target: Target) -> KernelReport:
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        os.environ.update(ENVIRONMENT | caches)
        prepare_process()
        return compile_kernels(config, target)
