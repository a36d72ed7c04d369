-- ARGV: prefix, id. Returns {id, fields, position}; no fields where there is no such job.
return record(ARGV[1], ARGV[2])
