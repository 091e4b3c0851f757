import os
import subprocess
import sys


def test_mmpretrain_works_beside_transformers_5(tmp_path):
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers/__init__.py').touch()
    (tmp_path / 'transformers-5.1.0.dist-info').mkdir()
    metadata = 'Metadata-Version: 2.1\nName: transformers\nVersion: 5.1.0\n'
    (tmp_path / 'transformers-5.1.0.dist-info/METADATA').write_text(metadata)
    command = 'import mm_sop; from mmpretrain.models import VisionTransformer; from mm_sop.models import SOP'
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    subprocess.run([sys.executable, '-c', command], check=True, env=dict(os.environ, PYTHONPATH=path))
