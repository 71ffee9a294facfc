"""The world model: perception, prediction, the losses that train them and what they read."""

from forethought.worldmodel.checkpoint import (
    load_checkpoint,
    read_meta,
    save_checkpoint,
)
from forethought.worldmodel.diagnostics import diagnose, effective_rank, latent_std
from forethought.worldmodel.jepa import JEPA
from forethought.worldmodel.objective import Losses, Objective
from forethought.worldmodel.perception import (
    ImagePerception,
    Perception,
    Standardise,
    VectorPerception,
    mlp,
)
from forethought.worldmodel.predictors import GRUPredictor, Predictor, ResidualMLP
from forethought.worldmodel.readouts import Readouts
from forethought.worldmodel.train import (
    JointStage,
    LatentData,
    NonFiniteLossError,
    PredictorStage,
    encode_dataset,
    fit,
    train_joint,
    train_predictor,
)

__all__ = [
    "JEPA",
    "GRUPredictor",
    "ImagePerception",
    "JointStage",
    "LatentData",
    "Losses",
    "NonFiniteLossError",
    "Objective",
    "Perception",
    "Predictor",
    "PredictorStage",
    "Readouts",
    "ResidualMLP",
    "Standardise",
    "VectorPerception",
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
