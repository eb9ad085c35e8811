"""Jobs of integration tests. Each function runs on every rank of a gloo world (`ranks.run_ranks`)."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist

from gptoss20b.config import Config, resolve
from gptoss20b.config.tree import Yarn
from gptoss20b.dataloader import DataLoader, build_dataloader
from gptoss20b.mlperf_log import RunLog
from gptoss20b.model.initialize import canonical_name
from gptoss20b.process_groups import create_process_groups, distributed_session, read_rank

Variables = dict[str, str]


# The released gpt-oss's features, at the size of the small model.
OPENAI_FEATURES = {
    "activation": "clamped_swiglu",
    "biases": True,
    "qk_norm": False,
    "attention_sinks": True,
    "window_left": 20,
    "yarn": Yarn(original_max_position_embeddings=16),
}


def configure(variables: Variables) -> Config:
    """Resolve a configuration. Three keys change what no setting does.

    "like openai" gives the small model all features of the released gpt-oss, "window" sets window_left, and "layers"
    num_layers.
    """
    settings = dict(variables)
    model: dict[str, Any] = {}
    if layers := settings.pop("layers", None):
        model["num_layers"] = int(layers)
    if window := settings.pop("window", None):
        model["window_left"] = int(window)
    if settings.pop("like openai", None):
        model |= OPENAI_FEATURES
    config = resolve(settings)
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


@contextmanager
def layouts(variables: list[Variables]) -> Iterator[Iterator[Config]]:
    """Iterate over configurations on the same ranks, each with its own Megatron process groups."""
    configs = [configure(each) for each in variables]

    def each() -> Iterator[Config]:
        from megatron.core import parallel_state

        for number, config in enumerate(configs):
            if number:
                parallel_state.destroy_model_parallel()
                create_process_groups(config)
            yield config

    with distributed_session(configs[0], read_rank(configs[0])):
        yield each()


def make_trainer(config: Config, backend: Any = "torch", seed: int = 1) -> Any:
    from gptoss20b.trainer import Trainer

    return Trainer(config, backend, torch.device("cpu"), seed)


def make_dataloader(config: Config, seed: int = 1) -> DataLoader:
    from gptoss20b.train import data_shard

    with redirect_stdout(io.StringIO()):
        clock = RunLog(None).run_start()
    return build_dataloader(clock, config, data_shard(config), torch.device("cpu"), seed)


def token_losses(gpt: Any, batch: Any) -> torch.Tensor:
    """Return Megatron-Core's losses [b, S] of a batch, with their graph and without the mask."""
    positions = torch.arange(batch.tokens.shape[1])[None].expand_as(batch.tokens)
    losses: torch.Tensor = gpt(input_ids=batch.tokens, position_ids=positions, attention_mask=None, labels=batch.labels)
    return losses


def weight_digests(trainer: Any, config: Config) -> dict[str, str]:
    """Return the SHA-256 of every weight of this rank, by its name in the whole model with global expert number."""
    local = trainer.model.module.named_parameters()
    return {name: _digest(weight) for name, weight in with_global_names(trainer.model.module, config, local)}


def with_global_names(
    gpt: Any, config: Config, local: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield this rank's tensors, given by local parameter name, by name in the whole model; experts one by one."""
    from megatron.core import parallel_state

    first = parallel_state.get_expert_model_parallel_rank() * (config.model.num_experts // config.parallel.expert)
    offset = gpt.decoder.layers[0].layer_number - 1
    for local_name, tensor in local:
        name = local_name
        if name.startswith("decoder.layers."):
            _, _, number, rest = name.split(".", 3)
            name = f"decoder.layers.{int(number) + offset}.{rest}"
        name, local_expert = canonical_name(name)
        if local_expert is not None:
            yield f"{name}[{first + local_expert}]", tensor
        elif ".experts." in name:
            yield from ((f"{name}[{first + number}]", part) for number, part in enumerate(tensor))
        else:
            yield name, tensor


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def union_of_ranks(digests: dict[str, str]) -> dict[str, str]:
    """Return the union of all ranks' digests. Ranks that hold the same weight must agree."""
    per_rank: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(per_rank, digests)
    union: dict[str, str] = {}
    for each in per_rank:
        for name, digest in each.items():
            assert union.setdefault(name, digest) == digest, f"ranks differ in {name}"
    return union


def train_steps(variables: list[Variables], steps: int, backend: str = "torch") -> list[dict[str, Any]]:
    """Train some steps in each layout. Return digests of the initial weights, losses, norms and evaluation loss."""
    outcomes = []
    with layouts(variables) as configs:
        for config in configs:
            trainer, dataloader = make_trainer(config, backend), make_dataloader(config)
            initial = union_of_ranks(weight_digests(trainer, config))
            results = [trainer.step(dataloader.train_batches(step)) for step in range(steps)]
            outcomes.append(
                {
                    "weights": initial,
                    "losses": [result.loss() for result in results],
                    "norms": [float(result.grad_norm) for result in results],
                    "counts": trainer.parameter_counts(),
                    "evaluation": trainer.evaluate(dataloader.eval_batches(), dataloader.eval_micro_batches),
                }
            )
            dataloader.close()
    return outcomes


def gradients(variables: Variables, backends: list[Any]) -> list[dict[str, Any]]:
    """Compute loss and gradients of this rank's first micro batch with each layer back end, from the same weights.

    Returns:
        Per back end "loss", the mean over the tokens, and its "gradients" by name in the whole model. Gradients of
        experts are those of all ranks' losses, because their tokens come from all ranks.
    """
    with layouts([variables]) as configs:
        config = next(configs)
        dataloader, outcomes = make_dataloader(config), []
        batch = next(iter(dataloader.train_batches(0)))
        for backend in backends:
            trainer = make_trainer(config, backend)
            losses = token_losses(trainer.model.module, batch)
            names, parameters = zip(*trainer.model.module.named_parameters(), strict=True)
            found = zip(names, torch.autograd.grad(losses.mean(), parameters), strict=True)
            outcomes.append(
                {
                    "loss": float(losses.mean()),
                    "gradients": {
                        name: x.numpy() for name, x in with_global_names(trainer.model.module, config, found)
                    },
                }
            )
        dataloader.close()
        return outcomes


def evaluate_untrained(variables: list[Variables]) -> list[dict[str, Any]]:
    """Evaluate an untrained model in each layout. Return the loss and the sequences that this rank counted."""
    outcomes = []
    with layouts(variables) as configs:
        for config in configs:
            trainer, dataloader = make_trainer(config), make_dataloader(config)
            seen: list[tuple[int, ...]] = []

            def watched(dataloader: DataLoader = dataloader, seen: list[tuple[int, ...]] = seen) -> Iterator[Any]:
                for batch in dataloader.eval_batches():
                    for tokens, mask in zip(batch.tokens, batch.loss_mask, strict=True):
                        if mask.any():
                            assert mask.all(), "a row is counted wholly or not at all"
                            seen.append(tuple(tokens.tolist()))
                    yield batch

            loss = trainer.evaluate(watched(), dataloader.eval_micro_batches)
            outcomes.append({"loss": loss, "seen": seen, "sha256": dataloader.eval_tokens_sha256()})
            dataloader.close()
    return outcomes


def trained_windows(variables: list[Variables], steps: int) -> list[list[list[tuple[int, ...]]]]:
    """Return the token windows that this rank trains on, by layout and step."""
    with layouts(variables) as configs:
        outcomes = []
        for config in configs:
            dataloader = make_dataloader(config)
            outcomes.append(
                [
                    [tuple(row.tolist()) for batch in dataloader.train_batches(step) for row in batch.tokens]
                    for step in range(steps)
                ]
            )
            dataloader.close()
        return outcomes


def warm_up_leaves_no_trace(variables: Variables) -> dict[str, Any]:
    """Return the trainer's state before and after the warm-up, and during it, which shows that it did something."""
    from gptoss20b.batches import synthetic_batches
    from gptoss20b.warmup import preserve_state, warm_up

    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        before = trainer_digests(trainer)
        warm_up(trainer, 2)
        after = trainer_digests(trainer)
        with preserve_state(trainer):
            for _ in range(2):
                trainer.step(synthetic_batches(config, trainer.device, config.accumulation_steps))
            torch.rand(3)
            during = trainer_digests(trainer)
        return {"before": before, "after": after, "during": during, "again": trainer_digests(trainer)}


def trainer_digests(trainer: Any) -> dict[str, Any]:
    """Return digests of weights, main weights, moments, schedule and random state."""
    found: dict[str, Any] = {name: _digest(p) for name, p in trainer.model.named_parameters()}
    parts = getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer])
    for number, part in enumerate(parts):
        for index, parameter in enumerate(part.get_parameters()):
            found[f"main {number}.{index}"] = _digest(parameter)
            moments = part.optimizer.state.get(parameter, {})
            found[f"moments {number}.{index}"] = {
                key: _digest(value) if torch.is_tensor(value) else value for key, value in moments.items()
            }
        found[f"rates {number}"] = [group["lr"] for group in part.optimizer.param_groups]
        found[f"group keys {number}"] = [sorted(group) for group in part.optimizer.param_groups]
    found["schedule"] = trainer.scheduler.state_dict()
    found["random"] = _digest(torch.get_rng_state())
    return found


def train(variables: Variables, rank_1: Variables | None = None) -> tuple[int, str]:
    """Run one rank. Return its exit status and its output on stderr. Settings of the launcher are ignored.

    ``rank_1`` are settings of rank 1 only.
    """
    from gptoss20b.train import run

    if os.environ["RANK"] == "1":
        variables = {**variables, **(rank_1 or {})}
    settings = {name: value for name, value in variables.items() if name not in ("NEXP", "SEED_BASE")}
    with redirect_stderr(io.StringIO()) as output:
        code = run(resolve(settings))
    return int(code), output.getvalue()


def opens_data_only_after_run_start(variables: Variables) -> dict[str, Any]:
    """Run a few steps under an audit hook. Return the order of run_start and of accesses to the data folder."""
    import sys

    from gptoss20b.mlperf_log import RunClock
    from gptoss20b.train import run

    config = resolve(variables)
    folder = str(config.data.directory)
    events: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        touched = any(folder in str(a) for a in arguments if isinstance(a, str | bytes) or hasattr(a, "__fspath__"))
        if event in ("open", "os.listdir", "os.scandir", "mmap.__new__") and touched:
            events.append("data")

    sys.addaudithook(watch)
    make_clock = RunClock.__init__

    def marked(self: RunClock, proof: object) -> None:
        events.append("run_start")
        make_clock(self, proof)

    RunClock.__init__ = marked  # type: ignore[method-assign]
    code = run(config)
    return {"events": events, "code": int(code)}
