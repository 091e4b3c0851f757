"""Self-supervised algorithms, one file each."""

from mm_sop.models.selfsup.byol import SiameseBYOL
from mm_sop.models.selfsup.dino import DINO
from mm_sop.models.selfsup.moco_v3 import SiameseMoCoV3
from mm_sop.models.selfsup.resa import ReSA
from mm_sop.models.selfsup.semantic_moco import SemanticMoCo
from mm_sop.models.selfsup.semantic_siamese import SemanticBYOL, SemanticSimSiam
from mm_sop.models.selfsup.semantic_simclr import SemanticSimCLR
from mm_sop.models.selfsup.siamese import SiameseTeacher
from mm_sop.models.selfsup.sop import SOP

__all__ = [
    'DINO',
    'SOP',
    'ReSA',
    'SemanticBYOL',
    'SemanticMoCo',
    'SemanticSimCLR',
    'SemanticSimSiam',
    'SiameseBYOL',
    'SiameseMoCoV3',
    'SiameseTeacher',
]
