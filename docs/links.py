# SPDX-License-Identifier: Apache-2.0
"""A hook of mkdocs: links between notebooks and pages, which it rewrites and checks in pages only.

In a notebook a link names the other file, as Jupyter and GitHub want it.
"""

import logging
import posixpath
import re
from urllib.parse import urldefrag

log = logging.getLogger("mkdocs.hooks.links")
_LINK = re.compile(r'href="(?!#|[a-z]+:)([^"]+\.(?:md|ipynb)(?:#[^"]*)?)"')


def on_page_content(html, page, config, files):
    """The notebook with links to the site's addresses; a warning for one that leads nowhere."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def on_site(match):
        name, anchor = urldefrag(match[1])
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), name))
        target = files.get_file_from_path(there)
        if target is None:
            log.warning("%s links to %s, which does not exist", page.file.src_uri, there)
            return match[0]
        url = target.url_relative_to(page.file)
        return f'href="{url}#{anchor}"' if anchor else f'href="{url}"'

    return _LINK.sub(on_site, html)
