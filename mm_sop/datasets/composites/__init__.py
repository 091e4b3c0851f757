"""Photo composites: data sets of every kind made from photo cut-outs and photos, without any download of a data set."""

from .assets import AssetError, Assets, Cutout, Photo, Split, build_assets, find_own_sources
from .compose import OBJECT_CENTRED, SCENE, Canvas, Style, compose
from .generate import SETS, ExistingSetError, generate_composites
from .images import UnusableImageError
from .packages import PACKAGES, PackageError, fetch_packages, find_cutouts, find_photos
from .preview import write_contact_sheets
from .sets import CompositeSet, CompositeSettings, SettingsError

__all__ = [
    'OBJECT_CENTRED',
    'PACKAGES',
    'SCENE',
    'SETS',
    'AssetError',
    'Assets',
    'Canvas',
    'CompositeSet',
    'CompositeSettings',
    'Cutout',
    'ExistingSetError',
    'PackageError',
    'Photo',
    'SettingsError',
    'Split',
    'Style',
    'UnusableImageError',
    'build_assets',
    'compose',
    'fetch_packages',
    'find_cutouts',
    'find_own_sources',
    'find_photos',
    'generate_composites',
    'write_contact_sheets',
]
