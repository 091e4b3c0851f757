import logging
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
    environment = dict(os.environ, PYTHONPATH=path)
    done = subprocess.run(
        [sys.executable, '-c', command], check=True, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert 'OneDL' not in done.stdout


def test_only_the_missing_platform_is_passed_over_in_silence(capsys):
    from mmengine.logging import print_log

    print_log('Could not import OneDL. Skipping OneDL datasets.', level=logging.DEBUG)
    assert not capsys.readouterr().out
    print_log('Could not import something else', level=logging.DEBUG)
    assert capsys.readouterr().out == 'Could not import something else\n'
