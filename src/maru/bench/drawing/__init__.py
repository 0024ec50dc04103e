"""What people see of a document: pictures, and the report.

    picture       a document as one PNG: its panels, the legend, what was measured on what
    panels        what each panel shows, and the room it needs
    plots         a panel in its axes: curves, bars, timelines
    scales        numbers as people read them: units, ticks, three digits
    lettering     text on a picture: widths, lines, sizes
    colours       how each system looks, the same everywhere
    page          documents as one HTML file; `page_sections` and `page_style` below it

Nothing here measures, and nothing that measures imports it but to show what came out.
"""
