#!/usr/bin/env bash
# Render the notebooks, with their outputs and plots: content/notebook.ipynb as README.md,
# content/pytorch_s3.ipynb as content/pytorch_s3.md.
#
#   bash convert_to_md.sh           write them, and content/images/*.png
#   bash convert_to_md.sh --check   exit 1 unless they are what the notebooks render to; write nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
mkdir -p "$rendered/content/images"

render() { # NOTEBOOK MARKDOWN FOLDER-OF-CONTENT-AS-SEEN-FROM-IT
  local name
  name=$(basename "$1" .ipynb)
  jupyter nbconvert "$1" --log-level WARN --to markdown --output-dir "$rendered/content" --output "$name" \
    --NbConvertApp.output_files_dir=images \
    --ExtractOutputPreprocessor.output_filename_template="${name}_{cell_index}_{index}{extension}"
  python3 - "$rendered/content/$name.md" "$rendered/$2" "$3" "$1" <<'PYTHON'
import re
import sys
from pathlib import Path

source, target, content, notebook = sys.argv[1:]
renderings = {"notebook.ipynb": "README.md" if content else "../README.md", "pytorch_s3.ipynb": f"{content}pytorch_s3.md"}
text = Path(source).read_text()
text = re.sub(r"\]\((images|data)/", rf"]({content}\1/", text)  # in the notebook, relative to content/
text = re.sub(r"\]\((\w+\.ipynb)\)", lambda link: f"]({renderings[link[1]]})", text)
text = re.sub(r"\]\(#(.+?)\)", lambda link: f"](#{link[1].lower()})", text)  # GitHub's anchors are in lower case
text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours of a terminal
text = text.replace("![png]", "![Plot: its finding is its title, its main numbers are in the text around it]")
note = f"<!-- Rendered from {notebook} by convert_to_md.sh: edit the notebook. -->"
Path(source).unlink()
Path(target).write_text(f"{note}\n\n{text.strip()}\n")
PYTHON
}
render content/notebook.ipynb README.md content/
render content/pytorch_s3.ipynb content/pytorch_s3.md ""

if [[ ${1:-} == --check ]]; then
  for file in README.md content/pytorch_s3.md; do
    cmp "$file" "$rendered/$file" || stale=1
  done
  diff -r -x '*.svg' content/images "$rendered/content/images" || stale=1
  [[ -z ${stale:-} ]] || { echo "stale: run bash convert_to_md.sh" >&2; exit 1; }
  exit 0
fi
rm -f content/images/*.png
find "$rendered/content/images" -name '*.png' -exec mv {} content/images/ \;
mv "$rendered/README.md" README.md
mv "$rendered/content/pytorch_s3.md" content/pytorch_s3.md
