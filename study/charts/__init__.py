"""Draw figures from arrays and names: as PNG files, and as SVG that follows the page it stands in."""
