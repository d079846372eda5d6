// Jobs over HTTP with a fake device: asked for, watched, listed, cancelled, sent twice.

import Foundation
import HTTPTypes
import Hummingbird
import HummingbirdTesting
import JSON
import NIOCore
import StableDiffusion
import Testing

@testable import Serving

extension TestClientProtocol {
    fileprivate func submit(_ body: String, key: String? = nil) async throws -> TestResponse {
        var headers: HTTPFields = [:]
        if let name = HTTPField.Name.idempotencyKey { headers[name] = key }
        return try await execute(uri: "/jobs", method: .post, headers: headers, body: ByteBuffer(string: body))
    }

    /// A job once it is in a state, which it must soon be.
    fileprivate func job(_ id: String, in state: String) async throws -> JSONValue {
        for _ in 0..<500 {
            let job = try #require(try await get("/jobs/\(id)").json)
            if job["state"]?.stringValue == state { return job }
            try await Task.sleep(for: .milliseconds(10))
        }
        Issue.record("job \(id) is never \(state)")
        return .null
    }
}

extension TestResponse {
    /// The id of the job that was answered.
    fileprivate var id: String { json?["id"]?.stringValue ?? "no id in \(text)" }
}

/// Events as a browser takes them apart.
private func events(_ text: String) -> [(id: String, name: String, data: JSONValue)] {
    text.components(separatedBy: "\n\n").compactMap { block in
        var fields: [String: String] = [:]
        for line in block.split(separator: "\n") where !line.hasPrefix(":") {
            let parts = line.split(separator: ":", maxSplits: 1).map(String.init)
            fields[parts[0]] = parts.count > 1 ? String(parts[1].dropFirst()) : ""
        }
        guard let name = fields["event"], let data = fields["data"],
            let value = try? JSONValue(parsing: Array(data.utf8))
        else { return nil }
        return (fields["id"] ?? "", name, value)
    }
}

@Suite struct JobTests {
    @Test func aJobIsAskedForAndDone() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                device.hold()
                let answer = try await client.submit("{\"prompt\": \"a\", \"seed\": -1, \"count\": 2, \"steps\": 3}")
                #expect(answer.status == .accepted)
                #expect(answer.headers[.location] == "/jobs/\(answer.id)")
                #expect(answer.json?["state"] == "queued" && answer.json?["position"] == 0)
                let running = try await client.job(answer.id, in: "running")
                #expect(running["step"] == 0 && running["steps"] == 6 && running["images"] == [])
                #expect(running["position"] == .null && running["finished"] == .null)
                device.release()
                let done = try await client.job(answer.id, in: "completed")
                #expect(done["step"] == 6 && done["error"] == .null && done["eta"] == .null)
                let images = try #require(done["images"]?.arrayValue)
                #expect(images.map { $0["seed"] } == [.number("-1"), .number("0")])
                for image in images {
                    try await #expect(client.get(image["url"]?.stringValue ?? "").headers[.contentType] == "image/png")
                }
                for name in ["created", "started", "finished"] {
                    let text = try #require(done[name]?.stringValue)
                    #expect(text.wholeMatch(of: /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/) != nil, "\(text)")
                }
                // What was asked for, all filled in, asks for the same.
                let parameters = try #require(done["parameters"])
                #expect(parameters["sampler"] == "ddim" && parameters["width"] == 64 && parameters["count"] == 2)
                let again = try await client.submit(parameters.serialized)
                let same = try await client.job(again.id, in: "completed")
                #expect(same["parameters"] == parameters)
            }
        }
    }

    @Test func everyParameterIsTold() async throws {
        try await withDaemon { daemon in
            try await daemon.test { client in
                let body = """
                    {"prompt": "a", "negative_prompt": "b", "width": 72, "height": 80, "steps": 3, "scale": 4.5, "seed": 9, "count": 1,
                     "sampler": "euler_a", "schedule": "karras", "spacing": "trailing", "eta": 0.5, "prompt_syntax": "a1111",
                     "clip_skip": 2, "rng": "cuda", "loras": [{"name": "l", "weight": 0.5}],
                     "hires": {"scale": 1.5, "strength": 0.7, "steps": 4}}
                    """
                let job = try await client.submit(body)
                let asked = try #require(try JSONValue(parsing: Array(body.utf8)).objectValue)
                for member in asked { #expect(job.json?["parameters"]?[member.name] == member.value, "\(member.name)") }
                #expect(job.json?["parameters"]?.objectValue?.count == asked.count)
            }
        }
    }

    @Test func failuresAreTold() async throws {
        let device = FakeDevice()
        device.fail("bad", with: .invalid(field: "steps", reason: "too few"))
        device.fail("lost", with: .deviceFailed(reason: "gone"))
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                let bad = try await client.submit("{\"prompt\": \"bad\"}")
                let error = try await client.job(bad.id, in: "failed")["error"]
                #expect(error?["status"] == 422 && error?["detail"]?.arrayValue?.first?["loc"] == ["body", "steps"])
                let lost = try await client.submit("{\"prompt\": \"lost\"}")
                #expect(try await client.job(lost.id, in: "failed")["error"]?["status"] == 503)
                try await #expect(client.submit("{}").status == .unprocessableContent)
                for path in ["/jobs/\(UUID().uuidString)", "/jobs/x", "/jobs/\(UUID().uuidString)/events"] {
                    let missing = try await client.get(path)
                    #expect(missing.status == .notFound && missing.detail == "No such job")
                }
            }
        }
    }

    /// `POST /generate` makes a job too, and says which, also where it fails.
    @Test func generateNamesItsJob() async throws {
        let device = FakeDevice()
        device.fail("lost", with: .deviceFailed(reason: "gone"))
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                let name = try #require(HTTPField.Name.jobID)
                for (prompt, state) in [("a", "completed"), ("lost", "failed")] {
                    let answer = try await client.generate("{\"prompt\": \"\(prompt)\"}")
                    let id = try #require(answer.headers[name])
                    #expect(try await client.get("/jobs/\(id)").json?["state"]?.stringValue == state)
                }
            }
        }
    }

    @Test func jobsAreCancelled() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                device.hold()
                let first = try await client.submit("{\"prompt\": \"a\", \"steps\": 50}").id
                _ = try await client.job(first, in: "running")
                let second = try await client.submit("{\"prompt\": \"b\"}").id
                let third = try await client.submit("{\"prompt\": \"c\"}").id
                #expect(try await client.get("/jobs/\(third)").json?["position"] == 2)
                let cancelled = try await client.get("/jobs/\(second)", method: .delete)
                #expect(cancelled.status == .ok && cancelled.json?["state"] == "cancelled")
                #expect(try await client.get("/jobs/\(third)").json?["position"] == 1)
                try await #expect(client.get("/jobs/\(first)", method: .delete).json?["state"] == "running")
                device.release()
                let ended = try await client.job(first, in: "cancelled")
                // It ended within a step.
                #expect((ended["step"]?.integerValue ?? 99) <= 2 && ended["images"] == [])
                let done = try await client.job(third, in: "completed")
                // Again, or too late, changes nothing.
                for (id, state) in [(first, "cancelled"), (second, "cancelled"), (third, "completed")] {
                    let again = try await client.get("/jobs/\(id)", method: .delete)
                    #expect(again.status == .ok && again.json?["state"]?.stringValue == state)
                }
                #expect(try await client.get("/jobs/\(third)").json == done)
                #expect(device.prepared.map(\.prompt) == ["a", "c"])
                try await #expect(client.get("/jobs/\(UUID().uuidString)", method: .delete).status == .notFound)
            }
        }
    }

    @Test func jobsAreListed() async throws {
        let device = FakeDevice()
        device.fail("x", with: .deviceFailed(reason: "gone"))
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                var ids: [String] = []
                for prompt in ["a", "x", "b", "c"] {
                    ids.insert(try await client.submit("{\"prompt\": \"\(prompt)\"}").id, at: 0)
                }
                _ = try await client.job(ids[0], in: "completed")
                func list(_ query: String) async throws -> [String] {
                    try await client.get("/jobs\(query)").json?["jobs"]?.arrayValue?.map { $0["id"]?.stringValue ?? "" }
                        ?? []
                }
                #expect(try await list("") == ids)
                #expect(try await list("?limit=2") == Array(ids.prefix(2)))
                #expect(try await list("?limit=2&before=\(ids[1])") == Array(ids.suffix(2)))
                #expect(try await list("?state=failed") == [ids[2]])
                #expect(try await list("?state=queued").isEmpty)
                #expect(try await list("?before=\(UUID().uuidString)").isEmpty)
                for query in ["?state=done", "?limit=0", "?limit=201", "?limit=x", "?before=x"] {
                    let refused = try await client.get("/jobs\(query)")
                    #expect(refused.status == .unprocessableContent)
                    #expect(refused.firstProblem?["loc"]?.arrayValue?.first == "query")
                }
            }
        }
    }

    @Test func aRequestSentTwiceIsOneJob() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                let body = "{\"prompt\": \"a\"}"
                let first = try await client.submit(body, key: "k")
                try await #expect(client.submit(body, key: "k").id == first.id)
                _ = try await client.job(first.id, in: "completed")
                let later = try await client.submit(body, key: "k")
                #expect(later.status == .accepted && later.id == first.id && later.json?["state"] == "completed")
                try await #expect(client.submit(body, key: "l").id != first.id)
                let other = try await client.submit("{\"prompt\": \"b\"}", key: "k")
                #expect(other.status == .unprocessableContent && other.detail?.contains("Idempotency-Key") == true)
                try await #expect(client.submit(body, key: String(repeating: "k", count: 256)).status == .badRequest)
                let (one, two) = (try await client.submit(body).id, try await client.submit(body).id)
                #expect(one != two)
                _ = try await client.job(two, in: "completed")
            }
        }
        #expect(device.prepared.count == 4)
    }

    @Test func eventsTellOfAJob() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                device.hold()
                let first = try await client.submit("{\"prompt\": \"a\", \"steps\": 3}").id
                _ = try await client.job(first, in: "running")
                let second = try await client.submit("{\"prompt\": \"b\", \"steps\": 2}").id
                async let watched = client.get("/jobs/\(second)/events")
                // The stream has begun before anything moves.
                try await Task.sleep(for: .milliseconds(100))
                device.release()
                let answer = try await watched
                #expect(answer.headers[.contentType] == "text/event-stream")
                let found = events(answer.text)
                #expect(found.first?.name == "queued" && found.first?.data["position"] == 1)
                #expect(found.last?.name == "completed" && found.last?.data["images"]?.arrayValue?.count == 1)
                let numbers = found.compactMap { Int($0.id) }
                #expect(numbers == numbers.sorted() && Set(numbers).count == found.count)
                #expect(found.allSatisfy { ["queued", "position", "step", "completed"].contains($0.name) })

                // Once more: the end alone. After the end: nothing more.
                let again = events(try await client.get("/jobs/\(second)/events").text)
                #expect(again.map(\.name) == ["completed"])
                let name = try #require(HTTPField.Name.lastEventID)
                let last = found.last?.id ?? ""
                let over = try await client.execute(uri: "/jobs/\(second)/events", method: .get, headers: [name: last])
                #expect(over.status == .noContent)
                let resumed = try await client.execute(
                    uri: "/jobs/\(second)/events",
                    method: .get,
                    headers: [name: String((Int(last) ?? 0) - 1)]
                )
                #expect(events(resumed.text).map(\.name) == ["completed"])
            }
        }
    }

    @Test func aShutdownIsTold() async throws {
        let device = FakeDevice()
        try await withDaemon(device) { daemon in
            try await daemon.test { client in
                device.hold()
                let running = try await client.submit("{\"prompt\": \"a\"}").id
                _ = try await client.job(running, in: "running")
                let waiting = try await client.submit("{\"prompt\": \"b\"}").id
                async let watched = client.get("/jobs/\(waiting)/events")
                try await Task.sleep(for: .milliseconds(50))
                _ = await daemon.queue.drain()
                #expect(events(try await watched.text).last?.name == "failed")
                #expect(try await client.get("/jobs/\(waiting)").json?["error"]?["status"] == 503)
                device.release()
                _ = try await client.job(running, in: "completed")
            }
        }
    }

    @Test func onlySoManyAreRemembered() async throws {
        let queue = JobQueue(capacity: 10_000, metrics: Metrics())
        let model = ModelDescription(name: "m", nativeSize: 8, precision: .float32, deviceName: "d")
        #expect(await queue.startServing(model))
        var request = GenerationRequest(
            prompt: "",
            width: 8,
            height: 8,
            steps: 1,
            guidanceScale: 1,
            seed: Seed(UInt64(1))
        )
        let pixels = [UInt8](repeating: 9, count: 8 * 8 * 3)
        request.source = SourcePicture(pixels: pixels, mask: [UInt8](repeating: 9, count: 64), strength: 0.5)
        var ids: [UUID] = []
        for index in 0..<JobQueue.historyLength + 5 {
            let key = JobQueue.IdempotencyKey(name: "\(index)", digest: [])
            ids.append(try await queue.enqueue(request, key: key).id)
        }
        for _ in ids {
            let job = try #require(await queue.next())
            #expect(job.request.source?.pixels == pixels)
            await queue.finish(job.id, nil)
        }
        #expect(await queue.record(ids[4]) == nil)
        let done = try #require(await queue.record(ids[5]))
        #expect(done.state == .completed)
        // A thousand photographs would be gigabytes.
        #expect(done.request.source == SourcePicture(pixels: [], mask: nil, strength: 0.5))
        #expect(await queue.outcome(of: ids[0]) == nil)
        #expect(await queue.changes(of: ids[0]) == nil)
        #expect(await queue.cancel(ids[0]) == nil)
        // A forgotten key names a new job.
        let again = try await queue.enqueue(request, key: .init(name: "0", digest: []))
        #expect(!ids.contains(again.id))
    }
}
