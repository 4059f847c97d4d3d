"""What a table's columns mean, how its rows are split, and the network that learns from them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.configuration import checked, read_configuration

UNION_TAGS = ("column", "time", "random")
"""How a split is chosen: pydantic puts it into the path of a wrong key."""

RUN = "run"
"""Key of the metrics file that holds what belongs to no task."""
Value = str | bool | int | float


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Strict):
    """One label to predict. A row whose label is null teaches this task nothing and is not judged by it."""

    name: str = Field(min_length=1)
    """Key of its metrics."""
    column: str
    """Where its label stands; never an input."""
    kind: Literal["binary", "fractional"] = "binary"
    """`binary`: 0 or 1, true or false, or any values with `positive`. `fractional`: a number in [0, 1]."""
    positive: Value | list[Value] | None = None
    """The value, or values, that count as 1, such as ">50K"; every other one counts as 0. Binary tasks only.
    Spaces around text are ignored."""
    weight: float = Field(default=1.0, gt=0)
    """Of its loss in the sum."""

    @model_validator(mode="after")
    def _positive_is_of_a_binary_task(self) -> Self:
        if self.positive is not None and self.kind != "binary":
            raise ValueError(f"task {self.name}: positive is for binary tasks; remove it, or set kind to binary")
        return self


class ColumnSplit(_Strict):
    """The part of each row stands in a column."""

    by: Literal["column"]
    column: str
    train: Value = "train"
    """The column's value in training rows."""
    validation: Value | None = "validation"
    """In validation rows; null when the table has none, so that `validation_share` of the training rows is taken."""
    test: Value | None = "test"
    """In test rows; null when the test rows are in a table of their own."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training rows, drawn at random, that validates when `validation` is null."""
    seed: int = Field(default=0, ge=0)
    """Of that draw."""


class TimeSplit(_Strict):
    """The newest rows are test, those before them validation. Rows of one instant stay together."""

    by: Literal["time"]
    column: str
    """Numbers or timestamps."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """About this share of the rows."""
    test: float = Field(default=0.2, ge=0, lt=1)
    """About this share; with a test table of its own, none."""


class RandomSplit(_Strict):
    """Rows are drawn at random: reproducible for the same table in the same order."""

    by: Literal["random"]
    seed: int = Field(default=0, ge=0)
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows."""
    test: float = Field(default=0.2, ge=0, lt=1)
    """Share of the rows; with a test table of its own, none."""


class NetworkConfig(_Strict):
    """Hyper-parameters. The defaults were chosen on validation rows of the Adult table."""

    mixture: Literal["mmoe", "ple", "single-task"] = "ple"
    """How tasks share: one pool of experts, shared and own experts in levels, or a network each."""
    embedding_dim: int = Field(default=16, ge=1)
    """Width of every category's embedding."""
    numeric_scale: Literal["quantile", "log"] = "quantile"
    """`quantile`: the standard normal's quantile at the value's rank. `log`: sign(x) log(1 + |x|), standardised."""
    numeric_bins: int = Field(default=16, ge=0)
    """Pieces of each number's piecewise linear encoding (Gorishniy et al., NeurIPS 2022); 0 leaves only the value."""
    min_category_rows: int = Field(default=5, ge=1)
    """Categories with fewer training rows share the row of what training did not know."""
    hidden_dims: tuple[int, ...] = (128,)
    """Widths of the layers before the experts; none lets the experts read the inputs."""
    experts: int = Field(default=4, ge=1)
    """That all tasks share; of `ple`, at each level."""
    own_experts: int = Field(default=2, ge=1)
    """Of each task at each level; only `ple` has them."""
    levels: int = Field(default=2, ge=1, le=8)
    """Extraction levels of `ple`."""
    expert_dim: int = Field(default=64, ge=1)
    tower_dim: int = Field(default=32, ge=1)
    wide: bool = True
    """Adds a linear term of every category and number to each task's logit (Cheng et al., DLRS 2016)."""
    dropout: float = Field(default=0.15, ge=0, lt=1)
    """Of the inputs' and each hidden layer's outputs."""
    unknown_share: float = Field(default=0.01, ge=0, lt=1)
    """Share of categories shown as unknown in training, so that the network can do without them."""
    epochs: int = Field(default=12, ge=1)
    """At most; see `patience`. The learning rate falls to 0 over them, along a cosine."""
    patience: int = Field(default=4, ge=1)
    """Epochs without a better validation after which training ends."""
    stop_on: Literal["auc", "loss"] = "auc"
    """What validation judges an epoch by: the tasks' mean AUC, or the weighted loss."""
    batch_size: int = Field(default=512, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    """The highest one, after a linear warm-up of one epoch's tenth."""
    weight_decay: float = Field(default=1e-3, ge=0)
    seed: int = Field(default=0, ge=0)
    """Of the weights, the order of rows and dropout."""
    threads: int = Field(default=1, ge=1)
    """Torch's and LightGBM's."""

    @model_validator(mode="after")
    def _layers_have_widths(self) -> Self:
        if any(width < 1 for width in self.hidden_dims):
            raise ValueError(f"hidden_dims: got {list(self.hidden_dims)}; allowed: widths of 1 or more")
        return self


Split = Annotated[ColumnSplit | TimeSplit | RandomSplit, Field(discriminator="by")]


class TabularConfig(_Strict):
    """Everything that a training run needs to know of a table. Columns that are not named are not read."""

    numeric: tuple[str, ...] = ()
    """Columns read as numbers. Null and NaN are told apart from every number."""
    categorical: tuple[str, ...] = ()
    """Columns read as categories, whatever their type; null is a category. A column may also be numeric."""
    tasks: tuple[Task, ...] = Field(min_length=1)
    split: Split = RandomSplit(by="random")
    network: NetworkConfig = NetworkConfig()

    @model_validator(mode="after")
    def _columns_have_one_role(self) -> Self:
        names = [task.name for task in self.tasks]
        for what, given in (("numeric", self.numeric), ("categorical", self.categorical), ("task names", names)):
            twice = sorted({name for name in given if given.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: {', '.join(twice)} stands there twice; name each once")
        if RUN in names:
            raise ValueError(f"a task is called {RUN!r}, which is a key of the metrics file; give it another name")
        if not (self.numeric or self.categorical):
            raise ValueError("numeric and categorical are both empty; name at least one feature")
        leaks = {*self.numeric, *self.categorical} & {task.column for task in self.tasks}
        if leaks:
            raise ValueError(f"{', '.join(sorted(leaks))}: a label cannot be a feature; remove it from the features")
        return self

    @property
    def task_names(self) -> list[str]:
        """The tasks' names, in the order of every array with a T."""
        return [task.name for task in self.tasks]


def read_config(file: Path) -> TabularConfig:
    """The configuration in a file. Raises `RefusalError` that names every wrong key."""
    return read_configuration(TabularConfig, file, "configuration", UNION_TAGS)


def parse_config(record: object, source: str) -> TabularConfig:
    """The configuration in a parsed file. Raises `RefusalError` that names every wrong key."""
    return checked(TabularConfig, record, f"configuration {source}", UNION_TAGS)
