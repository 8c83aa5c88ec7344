"""No password or key of the user's environment reaches the disk or the screen."""

import stat
import subprocess

SECRETS = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "LLM_JUDGE_API_KEY",
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)


def test_no_secret_of_the_environment_is_in_what_a_run_leaves_or_prints(cloned):
    planted = {name: f"planted-{name}" for name in SECRETS}
    uri = "http://planted-user:planted-password@127.0.0.1:9/mlflow?token=planted-token"
    code = cloned.root / "toy.py"  # a stage whose library prints an address with its password
    code.write_text(code.read_text() + 'say("asked https://planted-user:planted-password@127.0.0.1/x")\n')
    done = cloned.alignflow("run", "--only", "sft", MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_USERNAME="me", **planted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "https://127.0.0.1/x" in done.stdout
    assert "http://127.0.0.1:9/mlflow" in done.stdout
    assert "planted" not in done.stdout + done.stderr
    delivered = cloned.alignflow("deliver", MLFLOW_TRACKING_URI=uri, **planted)
    assert "http://127.0.0.1:9/mlflow" in delivered.stderr
    assert "planted" not in delivered.stdout + delivered.stderr
    history = ["git", "cat-file", "--batch-all-objects", "--batch"]  # compressed on disk
    left = {"git": subprocess.run(history, cwd=cloned.root, capture_output=True, check=True).stdout}
    left |= {str(path): path.read_bytes() for path in cloned.root.parent.rglob("*") if path.is_file()}
    left.pop(str(code))
    left = {
        name: text.replace(b'say("asked https://planted-user:planted-password@', b"") for name, text in left.items()
    }
    assert [name for name, text in left.items() if b"planted" in text] == []
    home = cloned.root / ".alignflow"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    readable = [path for path in home.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert readable == []
