#!/usr/bin/env bash
# List what an installation of the wheel contains, as CycloneDX 1.6 JSON: the client alone, and with every extra.
#   infra/sbom.sh dist/diffusion_render_farm-X.Y.Z-py3-none-any.whl OUTPUT_DIRECTORY
# Run from the repository's root.
set -euo pipefail
wheel="$1" out="$2"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

python3 -m venv "$work/tool"
"$work/tool/bin/python" -m pip install --quiet 'cyclonedx-bom>=7.5,<8'

for extras in client all; do
  # Without pip in it, the environment has nothing but the farm and what it needs.
  python3 -m venv --without-pip "$work/$extras"
  suffix="" && test "$extras" = client || suffix="[$extras]"
  "$work/tool/bin/python" -m pip --python "$work/$extras/bin/python" install --quiet --constraint constraints.txt "$wheel$suffix"
  "$work/tool/bin/cyclonedx-py" environment --pyproject pyproject.toml --mc-type application --spec-version 1.6 \
    --output-reproducible --output-format JSON --output-file "$out/$extras.cdx.json" "$work/$extras/bin/python"
done
