"""Figures from tidy tables, as SVG and PNG, readable in grey. The same table always gives the same bytes."""
