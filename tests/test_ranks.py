"""Ranks: N processes with batch B / N train like one with batch B."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from forethought.worldmodel import (
    JEPA,
    Actions,
    Losses,
    Objective,
    Readouts,
    ResidualMLP,
    VectorPerception,
    ranks,
    save_checkpoint,
)

D, B, T = 4, 16, 3
WEIGHTS = {
    "prediction": Losses(variance=0, covariance=0, temporal_similarity=0, inverse_dynamics=0),
    "vicreg": Losses(prediction=0, temporal_similarity=0, inverse_dynamics=0, covariance=1.0),
    "vicreg, flattened": Losses(temporal_similarity=0, covariance=1.0, flatten=True),
    "vicreg, expanded": Losses(prediction=0, covariance=1.0, expander=6),
    "sigreg": Losses(
        prediction=0, variance=0, covariance=0, temporal_similarity=0, inverse_dynamics=0, sigreg=1
    ),
    "all": Losses(sigreg=0.5, readout=1.0, covariance=1.0),
}


def spec() -> Any:
    from test_perception import vector_spec

    return vector_spec(5)


def gradients(name: str, part: slice) -> dict[str, Tensor]:
    """Gradient of one objective on a part of the batch, averaged over the ranks."""
    torch.manual_seed(0)
    model = JEPA(VectorPerception(spec(), latent_dim=D, hidden=8), ResidualMLP(D, 2, hidden=8))
    readouts, directions = Readouts(D, {"it": 1}, hidden=4), torch.Generator().manual_seed(5)
    heads = Objective(WEIGHTS[name], D, Actions(2), directions, readouts)
    both = nn.ModuleDict({"model": model, "heads": heads}).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, T + 1, 5, generator=generator, dtype=torch.float64)[part]
    actions = torch.randn(B, T, 2, generator=generator, dtype=torch.float64)[part]
    encoded = 0.3 * model.encode(x)  # below a standard deviation of 1: the variance term pulls
    predicted = model.rollout(encoded[:, 0], actions)
    heads(encoded, predicted, actions, {"it": x[..., :1]})[0].backward()
    held = [parameter for parameter in both.parameters() if parameter.grad is not None]
    ranks.average_gradients(held)
    return {k: p.grad for k, p in both.named_parameters() if p.grad is not None}


def of_one_rank(folder: Path) -> None:
    """What each of the processes does; called by `torchrun`'s stand-in below."""
    ranks.start("gloo")
    rank, world = ranks.rank(), ranks.world()
    assert world == 2
    share = B // world
    found = {
        f"{name}/{key}": gradient
        for name in WEIGHTS
        for key, gradient in gradients(name, slice(rank * share, (rank + 1) * share)).items()
    }
    # Rows of all ranks, with the gradient of everybody's loss.
    x = torch.full((2, 3), float(rank), requires_grad=True)
    everything = ranks.gather(x)
    factors = torch.arange(12.0).view(4, 3)
    (factors * everything).sum().backward()
    assert x.grad is not None
    found |= {"gather": everything.detach(), "gather.grad": x.grad}
    # Everybody gets the weights and statistics of rank 0.
    torch.manual_seed(rank)
    module = nn.BatchNorm1d(3)
    nn.init.normal_(module.weight)
    module.running_mean = torch.full((3,), float(rank))
    ranks.share(module)
    found |= {f"shared.{key}": value for key, value in module.state_dict().items()}
    ranks.wait()
    holder = nn.ParameterDict()
    state = {f"tensor{index}": value for index, value in enumerate(found.values())}
    for key, value in state.items():
        holder.register_buffer(key, value.detach().clone().contiguous())
    save_checkpoint(folder / f"rank{rank}.safetensors", {"it": holder}, {"names": list(found)})


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def read(path: Path) -> dict[str, Tensor]:
    from forethought.worldmodel import read_meta

    tensors, names = load_file(path), read_meta(path)["names"]
    return {name: tensors[f"it.tensor{index}"] for index, name in enumerate(names)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What two processes found, each with half of the batch."""
    folder = tmp_path_factory.mktemp("ranks")
    here = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(here)!r}); from pathlib import Path; "
    code += f"import test_ranks; test_ranks.of_one_rank(Path({str(folder)!r}))"
    port = str(free_port())
    processes = []
    for rank in range(2):
        told = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        environment = os.environ | told | {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([sys.executable, "-c", code], env=environment))
    assert [process.wait(120) for process in processes] == [0, 0]
    return [read(folder / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_half_a_batch_each_has_the_gradient_of_the_whole(
    name: str, pair: list[dict[str, Tensor]]
) -> None:
    whole = gradients(name, slice(None))
    assert sum(float(gradient.abs().sum()) for gradient in whole.values()) > 0
    halves = [{k: v for k, v in rank.items() if k.startswith(f"{name}/")} for rank in pair]
    for key, gradient in whole.items():
        for rank in range(2):
            found = halves[rank][f"{name}/{key}"]
            torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
    # The statistics matter: half a batch alone has another gradient.
    alone = gradients(name, slice(B // 2))
    assert any(not torch.allclose(alone[key], whole[key], rtol=1e-3) for key in whole)


@pytest.mark.slow
def test_rows_are_gathered_and_their_gradients_summed(pair: list[dict[str, Tensor]]) -> None:
    factors = torch.arange(12.0).view(4, 3)
    for rank in range(2):
        assert pair[rank]["gather"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        # The same loss on both ranks: twice its gradient, which averaging divides out.
        rows = factors[2 * rank : 2 * rank + 2]
        assert torch.equal(pair[rank]["gather.grad"], 2 * rows)


@pytest.mark.slow
def test_weights_and_buffers_of_the_first_rank_are_shared(pair: list[dict[str, Tensor]]) -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)
    nn.init.normal_(module.weight)
    for found in pair:
        assert torch.equal(found["shared.weight"], module.weight)
        assert torch.equal(found["shared.running_mean"], torch.zeros(3))


def test_one_process_alone_does_nothing() -> None:
    assert (ranks.world(), ranks.rank()) == (1, 0)
    x = torch.randn(3, 2, requires_grad=True)
    assert ranks.gather(x) is x
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    ranks.average_gradients([parameter, nn.Parameter(torch.ones(1))])
    assert parameter.grad.tolist() == [1.0, 2.0]
    ranks.share(nn.Linear(2, 2))
    ranks.wait()
    ranks.start("gloo")  # nobody told us of others
    assert ranks.world() == 1


TRAIN = """
import hashlib, json, os, sys
from pathlib import Path

from forethought import envs
from forethought.course import Course
from forethought.run_folder import RunFolder
from forethought.worldmodel import Snapshot, checkpoint, ranks

wrote = []
for owner, name in ((checkpoint, "write_tensors"), (RunFolder, "write_json"),
                    (RunFolder, "create")):
    def noted(*args, _call=getattr(owner, name), _name=name, **options):
        wrote.append(_name)
        return _call(*args, **options)
    setattr(owner, name, staticmethod(noted) if name == "create" else noted)

run = Course.run

def told(self, metrics):
    latents = run(self, metrics)
    digest = hashlib.sha256()
    modules = (self.jepa, self.objective, self.readouts, self.levels)
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.numpy().tobytes())
    drawn = self.generator.get_state().sum().item(), str(self.rng.bit_generator.state["state"])
    Path(sys.argv[1] + f".rank{ranks.rank()}.json").write_text(
        json.dumps([ranks.world(), digest.hexdigest(), wrote, drawn]))
    return latents

Course.run = told
from forethought.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_ranks_train_one_model_and_the_first_one_writes(tmp_path: Path) -> None:
    from test_course import TINY, TOGETHER

    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(TRAIN)
    words = ["train", *TINY, *TOGETHER, "--losses.sigreg=0.1", "--stages.levels.sigreg=0.1"]
    words += ["--stages.levels.steps=4", "--rounds=1", f"--run={run}"]
    words += ["--stages.joint.target_decay=0.9"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    # Behind `--`, for torchrun has options of its own that begin with --run.
    done = subprocess.run(
        [sys.executable, *launch, "--", str(script), str(tmp_path / "told"), *words],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"told.rank{rank}.json").read_text()) for rank in range(2)]
    assert [world for world, *_ in told] == [2, 2]
    assert told[0][1] == told[1][1]  # equal weights, bit by bit
    assert set(told[0][2]) >= {"create", "write_json"}
    assert told[1][2] == []
    assert told[0][3] != told[1][3]  # but each drew windows of its own
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    stages = [(line["stage"], line["step"]) for line in lines]
    assert len(stages) == len(set(stages))  # nothing twice
    assert yaml.safe_load((run / "config.yaml").read_text())["losses"]["sigreg"] == 0.1
    assert (run / "model.safetensors").is_file()
    assert not (run / "snapshot.safetensors").exists()
