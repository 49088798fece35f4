"The README's own-text example runs as it is printed, in less time."
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_example_trains_on_a_folder_and_writes(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    code, changed = re.subn(r"minutes=4", "minutes=0.1", code)
    assert changed == 1
    (tmp_path / "my_texts").mkdir()
    for i in range(40): (tmp_path / f"my_texts/{i}.txt").write_text(f"Once upon a time there were {i} foxes. " * 30)
    environment = {k: v for k, v in os.environ.items() if k != "COLANB_ROOT"} | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "0"}   # its progress is read
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/model/dit.safetensors").exists()
    assert not (tmp_path / "data").exists() and not list(tmp_path.rglob("resume"))
    assert re.search(r"vae: warning: only \d+ steps in \d+ s, 100 were wanted", done.stderr), done.stderr
    assert re.search(r"prior: +\d+%.* \d+ of 5 s, \d+ of about \d+ steps, cross-entropy [\d.]+ nats per token", done.stderr), done.stderr
    command = [Path(sys.executable).with_name("colanb-generate"), "--model", "mine/model", "--prompt", "Once", "--tokens", "8", "--steps", "2"]
    made = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert made.returncode == 0 and made.stdout.startswith("Once"), made.stderr
