"""Signal of each tissue: relaxation times at 1.5 T and the spin-echo and inversion-recovery signal equations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray


class Tissue(IntEnum):
    """The tissues that a phantom is made of."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    MARROW = 3
    CORTEX = 4
    NUCLEUS = 5
    ANNULUS = 6
    CSF = 7
    NERVE = 8
    LIGAMENT = 9
    VESSEL = 10
    BOWEL = 11
    SKIN = 12
    URINE = 13
    VEIN = 14


# Proton density, T1 ms, T2 ms, relative texture. Relaxation times at 1.5 T after Stanisz et al., MRM 54 (2005) 507 and
# de Bazelaire et al., Radiology 230 (2004) 652; fat's T2 is the longer one that fast spin echo shows; cortical bone,
# ligament and flowing blood give little signal, which proton density stands for here.
_RELAXATION: Final = {
    Tissue.AIR: (0.0, 1000, 50, 0.0),
    Tissue.FAT: (1.00, 290, 105, 0.05),
    Tissue.MUSCLE: (0.78, 950, 36, 0.10),
    Tissue.MARROW: (0.80, 520, 68, 0.13),
    Tissue.CORTEX: (0.14, 900, 20, 0.10),
    Tissue.NUCLEUS: (0.92, 1150, 115, 0.06),
    Tissue.ANNULUS: (0.52, 1000, 38, 0.10),
    Tissue.CSF: (1.05, 4000, 900, 0.02),
    Tissue.NERVE: (0.85, 950, 78, 0.04),
    Tissue.LIGAMENT: (0.33, 900, 28, 0.12),
    Tissue.VESSEL: (0.12, 1200, 80, 0.20),
    Tissue.BOWEL: (0.80, 900, 65, 0.22),
    Tissue.SKIN: (0.55, 700, 40, 0.10),
    Tissue.URINE: (1.05, 4000, 900, 0.02),
    Tissue.VEIN: (0.90, 1300, 160, 0.10),
}

TEXTURE: Final[NDArray[np.float32]] = np.array(
    [_RELAXATION[t][3] for t in Tissue], np.float32
)


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One pulse sequence: its contrast (``"t1"``, ``"t2"``, ``"stir"``) and times in ms; ``ti_ms`` 0 means none."""

    contrast: str
    tr_ms: float
    te_ms: float
    ti_ms: float = 0.0

    def signal(self) -> NDArray[np.float32]:
        """Return the signal of each ``Tissue``, ``(15,)``, in units of water's magnetisation.

        Spin echo ``PD (1 - exp(-TR/T1)) exp(-TE/T2)``; with inversion
        ``PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)``.
        """
        density, t1, t2, _ = np.array([_RELAXATION[t] for t in Tissue]).T
        recovery = np.exp(-self.tr_ms / t1)
        longitudinal = 1 - recovery
        if self.ti_ms > 0:
            longitudinal = np.abs(1 - 2 * np.exp(-self.ti_ms / t1) + recovery)
        return np.asarray(density * longitudinal * np.exp(-self.te_ms / t2), np.float32)
