#!/usr/bin/env bash
# The unit tests on the lowest and on the highest versions that pyproject.toml admits.
#
#   bash tests/versions.sh [lowest|highest|both] [PYTHON] [pytest arguments …]
#
# Each in a virtual environment of its own under a temporary folder that is deleted afterwards (KEEP=1 leaves it).
# lowest: every lower bound of [project.dependencies] and of the extra `test`, exactly. highest: whatever the
# registry offers within the bounds. Warnings are errors on the highest only: old libraries warn of new ones.
# PYTHON must be a version that wheels of the lowest bounds exist for (3.11). Needs a package registry and some
# gigabytes: torch of the registry brings its GPU libraries along.
set -euo pipefail
cd "$(dirname "$0")/.."

which=${1:-both}
python=${2:-python3.11}
shift $(($# < 2 ? $# : 2))
case $which in
lowest | highest) ends=("$which") ;;
both) ends=(lowest highest) ;;
*)
	echo "versions.sh: '$which' is neither lowest, highest nor both" >&2
	exit 2
	;;
esac
command -v "$python" >/dev/null || {
	echo "versions.sh: there is no $python; name a Python 3.11: make versions PYTHON=/path/to/python3.11" >&2
	exit 2
}

# `name>=1.2,<2` as `name==1.2`, for every requirement that has a lower bound.
lower_bounds() {
	"$python" - <<'END'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    name, bound = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement).groups()
    print(f"{name}=={bound}")
END
}

scratch=$(mktemp -d)
finish() { if [ -n "${KEEP:-}" ]; then echo "left: $scratch"; else rm -rf "$scratch"; fi; }
trap finish EXIT
failed=()
for end in "${ends[@]}"; do
	echo "== $end versions, $("$python" --version), in $scratch/$end"
	"$python" -m venv "$scratch/$end"
	pip=("$scratch/$end/bin/python" -m pip --disable-pip-version-check install --quiet)
	if [ "$end" = lowest ]; then
		lower_bounds >"$scratch/pins.txt"
		"${pip[@]}" -e ".[test]" -c "$scratch/pins.txt"
	else
		"${pip[@]}" --upgrade --upgrade-strategy eager -e ".[test]"
	fi
	warnings=()
	[ "$end" = highest ] || warnings=(-W default)
	"$scratch/$end/bin/python" -m pip freeze --exclude-editable | grep -iE \
		'^(torch|numpy|scipy|networkx|opt.einsum|tensorboard|hydra-core|rich|safetensors|matplotlib|jinja2|pyyaml|filelock|pytest|hypothesis|jaxtyping|beartype)(==| )'
	OMP_NUM_THREADS=1 "$scratch/$end/bin/python" -m pytest -q -n "${WORKERS:-2}" -p no:cacheprovider \
		${warnings[@]+"${warnings[@]}"} "$@" ||
		failed+=("$end")
done
if [ ${#failed[@]} -gt 0 ]; then
	echo "versions.sh: tests failed on the ${failed[*]} versions" >&2
	exit 1
fi
