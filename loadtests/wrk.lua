-- For wrk: an upload of so many bytes if that is the argument, and what was measured as JSON.

function init(args)
   local size = tonumber(args[1]) or 0
   if size > 0 then
      wrk.method = "POST"
      wrk.body = string.rep("u", size)
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'JSON {"requests": %d, "seconds": %.6f, "bytes": %d, '
         .. '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}, '
         .. '"latency": {"p50_us": %d, "p99_us": %d, "max_us": %d}}\n',
      summary.requests, summary.duration / 1e6, summary.bytes,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout,
      latency:percentile(50), latency:percentile(99), latency.max))
end
