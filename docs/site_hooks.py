"""What the site has beside docs/: the README as its first page, and the pages that GitHub looks for in the root."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md"} | {
    name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site with those of the root, links turned from there to docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/", "](").replace('src="docs/', 'src="')
        files.append(File.generated(config, page, content=text))
    return files
