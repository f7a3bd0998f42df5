"""Study: recurrent cells, what their Jacobians are made of, and how far back a gradient comes."""
