"""Photo composites: demo datasets of every kind, generated from photo cut-outs and background photos.

Only the Debian packages with the images are downloaded, no dataset. Imported by the command and the tests alone.
"""

from mm_sop.demo.assets import AssetError, Assets, Cutout, Photo, Split, build_assets, find_own_sources
from mm_sop.demo.compose import OBJECT_CENTERED, SCENE, Canvas, Style, compose
from mm_sop.demo.generate import SETS, ExistingSetError, generate_composites
from mm_sop.demo.images import UnusableImageError
from mm_sop.demo.packages import PACKAGES, PackageError, fetch_packages, find_cutouts, find_photos
from mm_sop.demo.preview import write_contact_sheets
from mm_sop.demo.sets import CompositeSet, CompositeSettings, SettingsError

__all__ = [
    'OBJECT_CENTERED',
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
