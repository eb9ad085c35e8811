"""What the ranks of integration tests do. Each function runs on every rank of a gloo world (see `ranks.run_ranks`)."""

from __future__ import annotations

import hashlib
import io
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


def configure(variables: Variables) -> Config:
    """The configuration; three keys reach what no variable does.

    "like openai" gives the small model all that the released gpt-oss has; "window" sets the window's past keys and
    "layers" the number of layers.
    """
    variables = dict(variables)
    like_openai, window = variables.pop("like openai", None), variables.pop("window", None)
    layers = variables.pop("layers", None)
    config = resolve(variables)
    if layers:
        config = config.model_copy(update={"model": config.model.model_copy(update={"num_layers": int(layers)})})
    if window:
        config = config.model_copy(update={"model": config.model.model_copy(update={"window_left": int(window)})})
    if like_openai:
        features = {
            "activation": "clamped_swiglu",
            "biases": True,
            "qk_norm": False,
            "attention_sinks": True,
            "window_left": 20,
            "yarn": Yarn(original_max_position_embeddings=16),
        }
        config = config.model_copy(update={"model": config.model.model_copy(update=features)})
    return config


@contextmanager
def layouts(variables: list[Variables]) -> Iterator[Iterator[Config]]:
    """Configurations one after the other on the same ranks, each with its own Megatron process groups."""
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


def digests(trainer: Any, config: Config) -> dict[str, str]:
    """SHA-256 of every weight this rank holds, by its name in the whole model and its global expert number."""
    held = trainer.model.module.named_parameters()
    return {name: _digest(weight) for name, weight in in_whole_model(trainer.model.module, config, held)}


def in_whole_model(
    gpt: Any, config: Config, held: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's tensors, given by its parameters' own names, by name in the whole model; experts one by one."""
    from megatron.core import parallel_state

    first = parallel_state.get_expert_model_parallel_rank() * (config.model.num_experts // config.parallel.expert)
    offset = gpt.decoder.layers[0].layer_number - 1
    for local_name, tensor in held:
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


def gathered(found: dict[str, str]) -> dict[str, str]:
    """The union over all ranks; two ranks that hold the same weight must agree on it."""
    everyone: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, found)
    union: dict[str, str] = {}
    for each in everyone:
        for name, digest in each.items():
            assert union.setdefault(name, digest) == digest, f"ranks differ in {name}"
    return union


def follow(variables: list[Variables], steps: int, backend: str = "torch") -> list[dict[str, Any]]:
    """For each layout: digests of the gathered initial weights, and losses and norms of the first steps."""
    outcomes = []
    with layouts(variables) as configs:
        for config in configs:
            trainer, dataloader = make_trainer(config, backend), make_dataloader(config)
            initial = gathered(digests(trainer, config))
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
    """For each layer back end, from the same weights: this rank's loss and gradients on its first micro batch.

    Returns:
        By back end "loss", the mean over the tokens, and "gradients" of it by name in the whole model and expert.
        Those of experts are of all ranks' losses, as their tokens come from all.
    """
    with layouts([variables]) as configs:
        config = next(configs)
        dataloader, outcomes = make_dataloader(config), []
        batch = next(iter(dataloader.train_batches(0)))
        for backend in backends:
            trainer = make_trainer(config, backend)
            positions = torch.arange(batch.tokens.shape[1])[None].expand_as(batch.tokens)
            losses = trainer.model.module(
                input_ids=batch.tokens, position_ids=positions, attention_mask=None, labels=batch.labels
            )
            names, parameters = zip(*trainer.model.module.named_parameters(), strict=True)
            found = zip(names, torch.autograd.grad(losses.mean(), parameters), strict=True)
            outcomes.append(
                {
                    "loss": float(losses.mean()),
                    "gradients": {name: x.numpy() for name, x in in_whole_model(trainer.model.module, config, found)},
                }
            )
        dataloader.close()
        return outcomes


def evaluate(variables: list[Variables]) -> list[dict[str, Any]]:
    """For each layout: the loss of an untrained model, which sequences this rank counted, and how many tokens."""
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


def order(variables: list[Variables], steps: int) -> list[list[list[tuple[int, ...]]]]:
    """For each layout and step: the token windows that this rank trains on."""
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
    """The trainer's whole state before and after the warm-up, and during it (to see that it did something)."""
    from gptoss20b.batches import synthetic_batches
    from gptoss20b.warmup import preserve_state, warm_up

    with layouts([variables]) as configs:
        config = next(configs)
        trainer = make_trainer(config)
        before = state(trainer)
        warm_up(trainer, 2)
        after = state(trainer)
        with preserve_state(trainer):
            trainer.step(synthetic_batches(config, trainer.device)(config.accumulation_steps))
            trainer.step(synthetic_batches(config, trainer.device)(config.accumulation_steps))
            torch.rand(3)
            during = state(trainer)
        return {"before": before, "after": after, "during": during, "again": state(trainer)}


def state(trainer: Any) -> dict[str, Any]:
    """Digests of weights, master weights, moments, schedule and random state."""
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


def train(variables: Variables) -> tuple[int, str]:
    """A rank's whole run: its exit status, and what it showed on stderr. What only a launcher reads is left out."""
    from gptoss20b.train import run

    own = {name: value for name, value in variables.items() if name not in ("NEXP", "SEED_BASE")}
    with redirect_stderr(io.StringIO()) as shown:
        code = run(resolve(own))
    return int(code), shown.getvalue()


def opens_data_only_after_run_start(variables: Variables) -> dict[str, Any]:
    """Run for a few steps under an audit hook; report what happened to the data folder before and after run_start."""
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
