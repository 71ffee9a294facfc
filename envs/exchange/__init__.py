"""Data that come from elsewhere or go elsewhere: arrays, files, Minari.

    import_episodes   a list of episodes
    import_arrays     flat arrays, of this project's layout or D4RL's
    import_file       a .npz or HDF5 file of flat arrays
    import_minari     a data set of Minari's on this machine; export_minari writes one

What is imported needs no simulator: its folder can be trained on like any other. A data set that is
whole appears, or nothing. h5py and Minari are imported when they are needed
(`pip install 'forethought[data]'`).
"""

from forethought.envs.exchange.actions import unscale_actions
from forethought.envs.exchange.arrays import import_arrays
from forethought.envs.exchange.episodes import ImportOptions, import_episodes
from forethought.envs.exchange.files import import_file
from forethought.envs.exchange.minari import export_minari, import_minari

__all__ = [
    "ImportOptions",
    "export_minari",
    "import_arrays",
    "import_episodes",
    "import_file",
    "import_minari",
    "unscale_actions",
]
