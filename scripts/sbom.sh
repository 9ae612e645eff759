#!/usr/bin/env bash
# Write a software bill of materials (CycloneDX, JSON) of what .venv has installed.
# Usage: scripts/sbom.sh [FILE]; sbom.cdx.json without one.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-sbom.cdx.json}
# The tool has an environment of its own: it must not be a part of what it lists.
tool=.venv/sbom
if [ ! -x "$tool/bin/cyclonedx-py" ]; then
    .venv/bin/python -m venv "$tool"
    "$tool/bin/pip" install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
fi
"$tool/bin/cyclonedx-py" environment --pyproject pyproject.toml --mc-type library \
    --output-reproducible --of JSON -o "$out" .venv/bin/python
echo "written: $out"
