"""What will be computed: the training plan a coordinator signs and the manifest every site signs."""

import math
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from common.canonical import digest_json
from common.settings import Settings

MINIMUM_SITES = 3
MAXIMUM_SITES = 10_000
MAXIMUM_ROUNDS = 100_000
RESERVED_NAMES = frozenset({"any", "coordinator"})
_EVALUATION_FIELDS = (
    "evaluation_noise_multiplier",
    "evaluation_sensitivity",
    "evaluation_dimension",
    "evaluation_scale",
    "evaluation_clamp",
)


class TaskSection(Settings):
    """What is predicted.

    Attributes:
        classes: Names of the classes; labels are indices into this list.
        positive: The class whose probability counts as the score of a two-class task.
    """

    kind: Literal["tabular-classification", "image-classification"]
    classes: tuple[str, ...] = Field(min_length=2, max_length=1000)
    positive: str

    @model_validator(mode="after")
    def _positive_is_a_class(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        if self.positive not in self.classes:
            raise ValueError(f"positive must be one of {list(self.classes)}")
        return self


class ModelSection(Settings):
    """The network: a frozen public backbone (or none) and what is trained on top of it.

    Attributes:
        backbone: `none`, or a torchvision architecture whose frozen output is the feature vector.
        weights: `sha256:<hex>` of the backbone's safetensors file; empty without a backbone.
        head: The trained part. `linear` is multinomial logistic regression with a bias.
        inputs: Shape of one record as the head sees it, e.g. [30] or [1, 8, 8].
        hidden: Widths of the hidden layers of `mlp` (tanh), or channels of `cnn`.
    """

    backbone: Literal["none", "squeezenet1_1"] = "none"
    weights: str = Field(default="", pattern=r"^(sha256:[0-9a-f]{64})?$")
    trainable: Literal["head"] = "head"
    head: Literal["linear", "mlp", "cnn"] = "linear"
    inputs: tuple[int, ...] = Field(min_length=1, max_length=3)
    hidden: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if any(size < 1 or size > 1 << 20 for size in (*self.inputs, *self.hidden)):
            raise ValueError("every size in inputs and hidden must be in 1..1048576")
        if (self.backbone == "none") != (self.weights == ""):
            raise ValueError("a backbone needs weights = 'sha256:…', and weights need a backbone")
        if (self.head == "linear") != (not self.hidden):
            raise ValueError("hidden belongs to 'mlp' and 'cnn' and must not be empty there")
        if self.head == "cnn" and len(self.inputs) != 3:
            raise ValueError("a 'cnn' head needs inputs = [channels, height, width]")
        if self.head != "cnn" and len(self.inputs) != 1:
            raise ValueError(f"a {self.head!r} head needs inputs = [features]")
        return self


class NormalisationSection(Settings):
    """Public constants that turn a raw feature vector x into the head's input; never statistics of private rows.

    x becomes (x - center) / scale, clamped per coordinate to ±limit, then shortened to `record_norm` if longer.
    Empty center and scale mean 0 and 1; limit and record_norm of 0 mean off.
    """

    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    limit: float = Field(default=0.0, ge=0)
    record_norm: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _constants_fit(self) -> Self:
        if len(self.center) != len(self.scale):
            raise ValueError(f"center has {len(self.center)} values and scale {len(self.scale)}")
        if any(value <= 0 for value in self.scale):
            raise ValueError("every scale must be > 0")
        return self


class TrainingSection(Settings):
    """How the model moves.

    Attributes:
        mode: `pooled`: one securely summed step a round, the noise shared. `local`: each site runs
            `local_steps` of DP-SGD with its own full noise and the weight changes are summed.
        spare_attempts: Attempts beyond `rounds` that the plan is calibrated for; a hard cap.
        sampling_rate: Chance of each patient to be in a step, in (0, 1]; 1 in pooled mode.
        momentum: Of the server optimizer.
        averaging: Decay of the exponential moving average of the released models; 0 = off.
        weight_decay: Pull towards 0 at the server, post-processing.
        local_learning_rate: Step size at the sites in `local` mode.
    """

    mode: Literal["pooled", "local"] = "pooled"
    rounds: int = Field(ge=1, le=MAXIMUM_ROUNDS)
    spare_attempts: int = Field(default=0, ge=0, le=MAXIMUM_ROUNDS)
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "momentum"
    learning_rate: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    averaging: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    local_steps: int = Field(default=1, ge=1, le=10_000)
    local_learning_rate: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.mode == "pooled" and (self.sampling_rate != 1.0 or self.local_steps != 1):
            raise ValueError("pooled mode is full batch: sampling_rate = 1 and local_steps = 1")
        return self


class PrivacySection(Settings):
    """What is promised to one patient of one site, or to one record of a patient (`unit`), which is less."""

    epsilon: float = Field(gt=0, le=1000)
    delta: float = Field(gt=0, lt=1)
    unit: Literal["patient", "record"] = "patient"
    clipping_norm: float = Field(default=1.0, gt=0, le=1e6)
    nominal_patients: int = Field(ge=1)

    @model_validator(mode="after")
    def _delta_is_small(self) -> Self:
        product = self.nominal_patients * self.delta
        if product >= 1:
            raise ValueError(
                f"nominal_patients x delta = {product:g} must be < 1: a mechanism that publishes one patient's whole "
                f"record at random would satisfy such a delta; use delta below {1 / self.nominal_patients:.1e}"
            )
        return self


class SecureSumSection(Settings):
    """How updates are added up without being seen."""

    dropouts: Literal["retry"] = "retry"
    minimum_cohort: int = Field(default=MINIMUM_SITES, ge=MINIMUM_SITES)
    colluding: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _enough_honest(self) -> Self:
        if self.colluding >= self.minimum_cohort - 1:
            raise ValueError(
                f"colluding = {self.colluding} must be at most minimum_cohort - 2 = {self.minimum_cohort - 2}: with "
                "one honest site left the sum shows that site's update"
            )
        return self


class EvaluationSection(Settings):
    """The charged evaluation on patients that every site keeps out of its training.

    Attributes:
        bins: Score bins of equal width; even for two classes, so that one half is an edge.
        epsilon: Of all evaluations of the run together, spare attempts included, at the plan's delta.
        every: The released model is evaluated after so many rounds each, and after the last; 0 is never.
        held_out: Share of each site's patients that are evaluated and never trained on; None without evaluation.
    """

    bins: int = Field(default=20, ge=2, le=1000)
    epsilon: float = Field(default=0.5, gt=0, le=1000)
    every: int = Field(default=0, ge=0, le=MAXIMUM_ROUNDS)
    held_out: float | None = Field(default=None, gt=0, le=0.5)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.every and self.held_out is None:
            raise ValueError(f"every = {self.every} needs held_out, the share of patients that are kept for it")
        if not self.every and self.held_out is not None:
            raise ValueError(
                f"held_out = {self.held_out:g} keeps patients out of training for no evaluation: set every"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_none(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _known(serialise(self), "held_out")

    def rounds_of(self, rounds: int) -> tuple[int, ...]:
        """The rounds of a run after which the released model is evaluated, ascending."""
        if not self.every:
            return ()
        return (*range(self.every, rounds, self.every), rounds)


class AugmentationSection(Settings):
    """Changed copies of every picture, averaged within the patient before clipping; they cost no privacy.

    Attributes:
        copies: Of each record, drawn afresh at every step.
        horizontal_flip: Whether a copy is mirrored left to right, with probability one half.
        shift_pixels: A copy moves by up to so many pixels up or down and left or right.
    """

    copies: int = Field(ge=1, le=64)
    horizontal_flip: bool = False
    shift_pixels: int = Field(default=0, ge=0, le=64)


class TrainingPlan(Settings):
    """Everything a site must agree to before it computes anything."""

    version: Literal[1] = 1
    task: TaskSection
    model: ModelSection
    normalisation: NormalisationSection = NormalisationSection()
    training: TrainingSection
    privacy: PrivacySection
    secure_sum: SecureSumSection = SecureSumSection()
    evaluation: EvaluationSection = EvaluationSection()
    augmentation: AugmentationSection | None = None

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        constants = len(self.normalisation.center)
        if constants and constants != math.prod(self.model.inputs):
            raise ValueError(f"normalisation has {constants} constants for {math.prod(self.model.inputs)} inputs")
        if self.evaluation.every and len(self.task.classes) == 2 and self.evaluation.bins % 2:
            raise ValueError(f"evaluation.bins = {self.evaluation.bins} must be even for two classes: 0.5 is an edge")
        if self.augmentation is not None and len(self.model.inputs) != 3:
            raise ValueError("augmentation is for pictures: model.inputs = [channels, height, width]")
        return self

    @model_serializer(mode="wrap")
    def _without_none(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _known(serialise(self), "augmentation")

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is signed and digested."""
        return self.model_dump(mode="json")

    @cached_property
    def digest(self) -> str:
        """`sha256:<hex>`; what a site approves."""
        return digest_json("plan", self.to_json())

    @property
    def attempts(self) -> int:
        """The most answers a site gives to this plan: rounds + spare attempts."""
        return self.training.rounds + self.training.spare_attempts

    @property
    def evaluation_attempts(self) -> int:
        """The most evaluations a site answers: those that are due + spare attempts; 0 if there are none."""
        due = len(self.evaluation.rounds_of(self.training.rounds))
        return due + self.training.spare_attempts if due else 0


def evaluation_run(run_id: str) -> str:
    """What ledgers call the evaluations of a run; no run id has a colon, so it is nobody's training."""
    return f"{run_id}:evaluation"


class RosterEntry(Settings):
    """One site of a run: its name, pinned key and public nominal number of patients (never the true one)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    identity_key: str
    nominal_patients: int = Field(ge=1, le=10**9)

    @field_validator("name")
    @classmethod
    def _is_no_role(cls, name: str) -> str:
        if name in RESERVED_NAMES:
            raise ValueError(f"{name!r} stands for a role in messages and names no site")
        return name


class Manifest(Settings):
    """One run, as every site signs it; one site's epsilon depends on every other site's noise.

    Symbols as in the design: m = minimum_cohort, c = colluding, z = noise_multiplier, Δ = sensitivity (grid units),
    s = scale, B = clamp (grid units), d = dimension, N₀ = nominal_patients, q = sampling_rate. The numbers that begin
    with `evaluation_` are the same of the evaluation's histogram; all or none of them are there.
    """

    version: Literal[1] = 1
    run_id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    roster: tuple[RosterEntry, ...] = Field(min_length=MINIMUM_SITES, max_length=MAXIMUM_SITES)
    coordinator_key: str
    plan_digest: str
    mode: Literal["pooled", "local"]
    dropouts: Literal["retry"] = "retry"
    minimum_cohort: int = Field(ge=MINIMUM_SITES)
    colluding: int = Field(ge=1)
    noise_multiplier: float = Field(gt=0)
    sensitivity: float = Field(gt=0)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    nominal_patients: int = Field(ge=1)
    dimension: int = Field(ge=1)
    scale: int = Field(ge=1)
    clamp: int = Field(ge=1)
    rounds: int = Field(ge=1)
    spare_attempts: int = Field(ge=0)
    evaluation: EvaluationSection = EvaluationSection()
    evaluation_noise_multiplier: float | None = Field(default=None, gt=0)
    evaluation_sensitivity: float | None = Field(default=None, gt=0)
    evaluation_dimension: int | None = Field(default=None, ge=1)
    evaluation_scale: int | None = Field(default=None, ge=1)
    evaluation_clamp: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _evaluation_is_whole(self) -> Self:
        given = [getattr(self, name) is not None for name in _EVALUATION_FIELDS]
        if any(given) != bool(self.evaluation.every) or any(given) != all(given):
            raise ValueError(f"{', '.join(_EVALUATION_FIELDS)} stand in a manifest with evaluation, all or none")
        return self

    @model_serializer(mode="wrap")
    def _without_none(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _known(serialise(self), *_EVALUATION_FIELDS)

    @model_validator(mode="after")
    def _roster_is_sound(self) -> Self:
        names = [entry.name for entry in self.roster]
        if names != sorted(set(names)):
            raise ValueError("roster names must be unique and sorted")
        if len({entry.identity_key for entry in self.roster}) != len(names):
            raise ValueError("two sites of the roster share one identity key")
        if not self.minimum_cohort <= len(names):
            raise ValueError(f"minimum_cohort = {self.minimum_cohort} exceeds the {len(names)} sites of the roster")
        if self.colluding >= self.minimum_cohort - 1:
            raise ValueError(f"colluding = {self.colluding} must be at most minimum_cohort - 2")
        return self

    def to_json(self) -> dict[str, Any]:
        """The JSON object that is signed and digested."""
        return self.model_dump(mode="json")

    @cached_property
    def digest(self) -> str:
        """`sha256:<hex>` of the manifest."""
        return digest_json("manifest", self.to_json())

    @property
    def names(self) -> tuple[str, ...]:
        """The sites, sorted."""
        return tuple(entry.name for entry in self.roster)

    @property
    def evaluated_rounds(self) -> tuple[int, ...]:
        """The rounds after which the released model is evaluated, ascending."""
        return self.evaluation.rounds_of(self.rounds)

    @property
    def evaluation_attempts(self) -> int:
        """The most evaluations a site answers; 0 if there are none."""
        due = len(self.evaluated_rounds)
        return due + self.spare_attempts if due else 0

    @property
    def evaluation_run(self) -> str:
        """What ledgers call the evaluations of this run."""
        return evaluation_run(self.run_id)

    def entry(self, name: str) -> RosterEntry:
        """The roster entry of one site; raises KeyError for a stranger."""
        for entry in self.roster:
            if entry.name == name:
                return entry
        raise KeyError(name)


def _known(fields: dict[str, Any], *optional: str) -> dict[str, Any]:
    """Fields without the optional ones that are None: documents from before those existed keep their digests."""
    return {name: value for name, value in fields.items() if value is not None or name not in optional}
