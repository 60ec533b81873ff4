"""Figures from tidy tables, as SVG and PNG, readable in grey; the same table gives the same bytes."""
