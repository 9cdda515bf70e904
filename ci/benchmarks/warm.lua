-- For wrk: sends the raw requests in the file REQUESTS, separated by NUL, in turn; prints JSON.
-- A thread of wrk's has one list for all its connections: with one thread, the order is the file's.
local requests, at = {}, 0
local counting
sent = -1 -- global, for done() to read: wrk asks for a first one that it only looks at
for request in io.open(os.getenv("REQUESTS")):read("*a"):gmatch("%Z+") do
  requests[#requests + 1] = request
end

function setup(thread)
  counting = thread
end

function request()
  at = at % #requests + 1
  sent = sent + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"sent": %d, "requests_per_s": %.1f, "p50_ms": %.3f, "p99_ms": %.3f, "errors": %d}',
    counting:get("sent"),
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
