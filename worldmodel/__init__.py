"""The world model: perception, prediction, the losses that train them and what they read."""

from forethought.worldmodel.checkpoint import (
    load_checkpoint,
    read_meta,
    save_checkpoint,
)
from forethought.worldmodel.diagnostics import diagnose, effective_rank, latent_std
from forethought.worldmodel.fit import NonFiniteLossError, OnStep, fit
from forethought.worldmodel.jepa import JEPA, Actions
from forethought.worldmodel.latents import LatentData, encode_dataset
from forethought.worldmodel.memory import Entries, Memory, MemoryConfig
from forethought.worldmodel.objective import Losses, Objective, action_error
from forethought.worldmodel.perception import (
    AutoPerception,
    ImagePerception,
    MixedPerception,
    Perception,
    Standardise,
    VectorPerception,
    mlp,
)
from forethought.worldmodel.predictors import GRUPredictor, Predictor, ResidualMLP
from forethought.worldmodel.readouts import Readouts
from forethought.worldmodel.snapshot import Snapshot
from forethought.worldmodel.train import (
    JointStage,
    PredictorStage,
    train_joint,
    train_predictor,
)

__all__ = [
    "JEPA",
    "Actions",
    "AutoPerception",
    "Entries",
    "GRUPredictor",
    "ImagePerception",
    "JointStage",
    "LatentData",
    "Losses",
    "Memory",
    "MemoryConfig",
    "MixedPerception",
    "NonFiniteLossError",
    "Objective",
    "OnStep",
    "Perception",
    "Predictor",
    "PredictorStage",
    "Readouts",
    "ResidualMLP",
    "Snapshot",
    "Standardise",
    "VectorPerception",
    "action_error",
    "diagnose",
    "effective_rank",
    "encode_dataset",
    "fit",
    "latent_std",
    "load_checkpoint",
    "mlp",
    "read_meta",
    "save_checkpoint",
    "train_joint",
    "train_predictor",
]
