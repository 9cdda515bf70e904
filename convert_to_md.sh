#!/usr/bin/env bash
# Render content/notebook.ipynb, with its outputs and plots, as README.md.
#
#   bash convert_to_md.sh           write README.md and content/images/notebook_*
#   bash convert_to_md.sh --check   exit 1 unless they are what the notebook renders to; write nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
jupyter nbconvert content/notebook.ipynb --log-level WARN --to markdown --output-dir "$rendered" --output README \
  --NbConvertApp.output_files_dir=content/images \
  --ExtractOutputPreprocessor.output_filename_template='notebook_{cell_index}_{index}{extension}'

python3 - "$rendered/README.md" <<'PYTHON'
import re
import sys
from pathlib import Path

readme = Path(sys.argv[1])
text = readme.read_text()
text = re.sub(r"\]\((images|data)/", r"](content/\1/", text)  # in the notebook, relative to content/
text = re.sub(r"\]\(#(.+?)\)", lambda link: f"](#{link[1].lower()})", text)  # GitHub's anchors are in lower case
text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours of a terminal
text = text.replace("![png]", "![Plot: its finding is its title, its main numbers are in the text around it]")
text = "<!-- Rendered from content/notebook.ipynb by convert_to_md.sh: edit the notebook. -->\n\n" + text.strip() + "\n"
readme.write_text(text)
PYTHON

if [[ ${1:-} == --check ]]; then
  if ! cmp README.md "$rendered/README.md" || ! diff -r -x '*.svg' content/images "$rendered/content/images"; then
    echo "README.md is stale: run bash convert_to_md.sh" >&2
    exit 1
  fi
  exit 0
fi
rm -f content/images/notebook_*
mv "$rendered"/content/images/* content/images/
mv "$rendered/README.md" README.md
