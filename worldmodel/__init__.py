"""The world model: perception, prediction, the losses that train them and what they read."""

from forethought.worldmodel.belief import (
    BeliefStage,
    Correction,
    encoded_blank,
    is_normalised,
    train_belief,
)
from forethought.worldmodel.causal import CausalPredictor
from forethought.worldmodel.checkpoint import (
    load_checkpoint,
    read_meta,
    save_checkpoint,
)
from forethought.worldmodel.diagnostics import diagnose, effective_rank, examine, latent_std
from forethought.worldmodel.energy import EnergyPredictor
from forethought.worldmodel.energy_forms import EnergyMLP, EnergyTransformer
from forethought.worldmodel.fit import NonFiniteLossError, OnStep, fit
from forethought.worldmodel.hierarchy import (
    Level,
    LevelShape,
    LevelStage,
    chains,
    level_data,
    lifted,
    train_level,
)
from forethought.worldmodel.jepa import JEPA, Actions
from forethought.worldmodel.joint_levels import JointLevels
from forethought.worldmodel.latents import LatentData, encode_dataset
from forethought.worldmodel.memory import Entries, Memory, MemoryConfig
from forethought.worldmodel.modulation import FiLM
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
from forethought.worldmodel.predictors import Ensemble, GRUPredictor, Predictor, ResidualMLP
from forethought.worldmodel.projector import BatchNorm, Projector
from forethought.worldmodel.readouts import Readouts
from forethought.worldmodel.refinement import Refinement, Thought
from forethought.worldmodel.snapshot import Snapshot
from forethought.worldmodel.target import SlowEncoder
from forethought.worldmodel.train import (
    JointStage,
    PredictorStage,
    train_joint,
    train_predictor,
)
from forethought.worldmodel.transformer import (
    Attention,
    Block,
    KeysValues,
    Transformer,
    attend,
    causal_mask,
)
from forethought.worldmodel.vision import ViTPerception

__all__ = [
    "JEPA",
    "Actions",
    "Attention",
    "AutoPerception",
    "BatchNorm",
    "BeliefStage",
    "Block",
    "CausalPredictor",
    "Correction",
    "EnergyMLP",
    "EnergyPredictor",
    "EnergyTransformer",
    "Ensemble",
    "Entries",
    "FiLM",
    "GRUPredictor",
    "ImagePerception",
    "JointLevels",
    "JointStage",
    "KeysValues",
    "LatentData",
    "Level",
    "LevelShape",
    "LevelStage",
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
    "Projector",
    "Readouts",
    "Refinement",
    "ResidualMLP",
    "SlowEncoder",
    "Snapshot",
    "Standardise",
    "Thought",
    "Transformer",
    "VectorPerception",
    "ViTPerception",
    "action_error",
    "attend",
    "causal_mask",
    "chains",
    "diagnose",
    "effective_rank",
    "encode_dataset",
    "encoded_blank",
    "examine",
    "fit",
    "is_normalised",
    "latent_std",
    "level_data",
    "lifted",
    "load_checkpoint",
    "mlp",
    "read_meta",
    "save_checkpoint",
    "train_belief",
    "train_joint",
    "train_level",
    "train_predictor",
]
