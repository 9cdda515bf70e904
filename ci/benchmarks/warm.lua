-- For wrk: sends the raw requests in the file REQUESTS, separated by NUL, in turn; prints JSON.
local requests, at = {}, 0
for request in io.open(os.getenv("REQUESTS")):read("*a"):gmatch("%Z+") do
  requests[#requests + 1] = request
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests_per_s": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}',
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
