"""The wire contract: a golden descriptor catches every change, the generated code is what the proto says."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from google.protobuf import descriptor_pb2, text_format

from serving import ranking_pb2

ROOT = Path(__file__).resolve().parents[2]


def test_the_descriptor_is_the_golden_one(matches_golden: Callable[[str, str], None]) -> None:
    """Within v1 fields are only added: review the diff with that in mind."""
    descriptor = descriptor_pb2.FileDescriptorProto()
    ranking_pb2.DESCRIPTOR.CopyToProto(descriptor)
    matches_golden("ranking_descriptor.txt", text_format.MessageToString(descriptor))


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outs, str(ROOT / "serving/ranking.proto")]
    subprocess.run(command, cwd=ROOT, check=True)
    for name in ("ranking_pb2.py", "ranking_pb2.pyi", "ranking_pb2_grpc.py"):
        fresh = (tmp_path / "serving" / name).read_text()
        assert fresh == (ROOT / "serving" / name).read_text(), f"serving/{name} is stale: generate it again"


def test_every_field_and_method_is_documented() -> None:
    before = ""
    for line in (ROOT / "serving" / "ranking.proto").read_text().splitlines():
        text = line.strip()
        if text.startswith("rpc ") or (text.endswith(";") and " = " in text):
            documented = before.startswith("//") or text.split()[1] in {
                "item_id",
                "category",
                "creator_id",
                "stage",
                "ms",
            }
            assert documented, f"ranking.proto does not document: {text}"
        before = text
