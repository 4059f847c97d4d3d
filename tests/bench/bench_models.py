"""What the models cost: an epoch of ALS by backend and width, the ranker's training, and scoring 500 candidates.

ALS is timed by the wall on its configured threads, on a made-up matrix of MovieLens-1M's shape; the ranker, which has
one thread, by that thread's CPU time, which other work on the machine disturbs least. Whatever is compared takes turns.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from rich.console import Console
from scipy import sparse

from models.als import AlsConfig, Backend, factorise
from models.ranker.calibration import identity
from models.ranker.config import RankerConfig
from models.ranker.export import export
from models.ranker.network import RankerNetwork
from models.ranker.scorer import Ranker
from models.ranker.training import Data, train_ranker
from models.ranker_inputs import HEADS, RankerLayout
from tests.bench.report import Row
from tests.bench.split_ranker import SplitRanker, request_feed
from tests.ranker_examples import random_inputs

USERS, ITEMS, PAIRS = 6_040, 3_706, 1_000_000
"""MovieLens-1M's; popularity is log-normal with about its ratio of mean to median, for users as for items."""
USER_SPREAD, ITEM_SPREAD = 1.05, 1.25
DIMENSIONS = (64, 192)
BACKENDS = (Backend.IMPLICIT, Backend.IALS)
ALS_EPOCHS = 2
ALS_ROUNDS = 5

LAYOUT = RankerLayout(devices=("phone", "tv"), items=20_000, categories=24, creators=2_000, languages=8)
CANDIDATES = 500
SCORE_ROUNDS = 300
TRAIN_EXAMPLES = 16_384
TRAIN_EPOCHS = 3
CPU_SETTINGS = {"threads": 1, "clock": "CPU"}


def run(console: Console) -> list[Row]:
    """`als_*`, `ranker_samples_per_s`, `score_500_ms_*`, `split_gain` and `item_part_ms`."""
    return [*als_rows(console), *ranker_rows(console), *training_rows(console)]


def als_rows(console: Console) -> list[Row]:
    """`als_epoch_s_BACKEND_DIM`, and `als_time_ratio_DIM`: the median of ials over implicit, round by round."""
    weight_UI, rows = interactions(np.random.default_rng(0)), []
    factorise(weight_UI[:50], AlsConfig(backend=Backend.IALS, embedding_dim=8, epochs=1), 0)  # numba compiles
    for dim in DIMENSIONS:
        configs = {name: AlsConfig(backend=name, embedding_dim=dim, epochs=ALS_EPOCHS) for name in BACKENDS}
        work = {str(name): _factorisation(weight_UI, config) for name, config in configs.items()}
        taken = {
            name: seconds / ALS_EPOCHS for name, seconds in alternating(work, ALS_ROUNDS, time.perf_counter).items()
        }
        settings = {**configs[Backend.IALS].model_dump(include={"threads", "cg_steps"}), "pairs": weight_UI.nnz}
        settings["load"] = round(psutil.getloadavg()[0], 1)
        for name, seconds_R in taken.items():
            rows.append(Row(name=f"als_epoch_s_{name}_{dim}", value=_median(seconds_R), unit="s", settings=settings))
            console.print(f"als {name} at {dim}: {_median(seconds_R):.3f} s an epoch")
        ratio = _median(taken[Backend.IALS] / taken[Backend.IMPLICIT])
        rows.append(Row(name=f"als_time_ratio_{dim}", value=ratio, unit="ratio", settings=settings))
    return rows


def interactions(rng: np.random.Generator) -> "sparse.csr_matrix":
    """`PAIRS` different pairs, drawn without replacement in proportion to user's and item's popularity."""
    popularity_U, popularity_I = (rng.lognormal(0, *each) for each in ((USER_SPREAD, USERS), (ITEM_SPREAD, ITEMS)))
    # The k smallest of exponentials over weights are a weighted draw (Efraimidis and Spirakis, 2006).
    key_UI = rng.standard_exponential((USERS, ITEMS), np.float32)
    key_UI /= (popularity_U[:, None] * popularity_I).astype(np.float32)
    chosen = np.argpartition(key_UI.ravel(), PAIRS)[:PAIRS]
    weights = (np.ones(PAIRS, np.float32), np.divmod(chosen, ITEMS))
    return sparse.csr_matrix(weights, shape=(USERS, ITEMS))


def ranker_rows(console: Console) -> list[Row]:
    """`score_500_ms_*`: the production network for one user, in torch, in ONNX Runtime, and there in two graphs.

    `split_gain` is the share of the whole graph's time that the split one saves, the gathering of the cached rows
    counted; `item_part_ms` is what the split one costs beside it at each new item snapshot.
    """
    torch.set_num_threads(1)
    rng, config = np.random.default_rng(0), RankerConfig()
    torch.manual_seed(0)
    network = RankerNetwork(LAYOUT, config).eval()
    inputs, catalogue = random_inputs(LAYOUT, CANDIDATES, 1, rng), random_inputs(LAYOUT, LAYOUT.items, 1, rng)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.feed().items()}
    with TemporaryDirectory() as folder:
        export(network, Path(folder) / "ranker.onnx", [inputs])
        ranker = Ranker.load(Path(folder) / "ranker.onnx", LAYOUT, identity(len(HEADS)))
        split = SplitRanker(network, Path(folder), inputs)
    request = request_feed(inputs)
    kept, chosen = split.item_rows(catalogue), rng.permutation(LAYOUT.items)[:CANDIDATES]

    def in_torch() -> None:
        with torch.inference_mode():
            network(tensors)

    work = {
        "torch": in_torch,
        "ort": lambda: ranker.logits(inputs),
        "ort_split": lambda: split.logits(request, {name: array[chosen] for name, array in kept.items()}),
    }
    taken = {name: 1_000 * seconds for name, seconds in alternating(work, SCORE_ROUNDS, time.thread_time).items()}
    item_part = alternating({"item_part": lambda: split.item_rows(catalogue)}, 20, time.thread_time)["item_part"]
    for name, ms in taken.items():
        console.print(f"score 500 in {name}: {_median(ms):.3f} ms")
    gain = 1 - _median(taken["ort_split"]) / _median(taken["ort"])
    return [
        *(
            Row(name=f"score_500_ms_{n}", value=_median(ms), unit="ms", settings=CPU_SETTINGS)
            for n, ms in taken.items()
        ),
        Row(name="split_gain", value=gain, unit="ratio", settings=CPU_SETTINGS),
        Row(name="item_part_ms", value=1_000 * _median(item_part), unit="ms", settings={"items": LAYOUT.items}),
    ]


def training_rows(console: Console) -> list[Row]:
    """`ranker_samples_per_s`: examples a second of whole epochs, forward, backward and update."""
    rng = np.random.default_rng(0)
    inputs = random_inputs(LAYOUT, TRAIN_EXAMPLES, TRAIN_EXAMPLES, rng)
    label_NT = (rng.random((TRAIN_EXAMPLES, len(HEADS))) < 0.1).astype(np.float32)
    every = np.arange(TRAIN_EXAMPLES)
    data = Data(
        inputs={name: torch.from_numpy(array) for name, array in inputs.feed().items()},
        label_NT=torch.from_numpy(label_NT),
        train_rows=every[64:],
        validation_rows=every[:64],
    )
    config = RankerConfig(epochs=TRAIN_EPOCHS, patience=TRAIN_EPOCHS)
    taken = alternating({"train": lambda: train_ranker(data, LAYOUT, config, 0)}, 3, time.thread_time)["train"]
    rate = TRAIN_EPOCHS * len(data.train_rows) / _median(taken)
    console.print(f"ranker: {rate:,.0f} examples a second")
    settings = {**CPU_SETTINGS, "batch_size": config.batch_size}
    return [Row(name="ranker_samples_per_s", value=rate, unit="1/s", settings=settings)]


def alternating(
    work: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, np.ndarray]:
    """Seconds of each piece of work in each round, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for each in range(rounds + 1):
        for name, do in work.items():
            began = clock()
            do()
            if each:
                taken[name].append(clock() - began)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def _factorisation(weight_UI: "sparse.csr_matrix", config: AlsConfig) -> Callable[[], object]:
    return lambda: factorise(weight_UI, config, 0)


def _median(values: np.ndarray) -> float:
    return float(np.median(values))
