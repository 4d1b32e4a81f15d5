"""`dbt report`: a run, or several, as one HTML file that opens anywhere and shows everything.

Free of torch. `gather` reads run folders into a `document`, `page` writes that as HTML.
"""
