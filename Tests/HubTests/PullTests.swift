// Downloads from a hub that breaks off, lies and redirects: what arrives is right or an error, nothing is fetched twice, and the token goes nowhere
// else.

import Foundation
import Synchronization
import TestSupport
import Testing

@testable import Hub

private func content(_ count: Int, seed: UInt8 = 7) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 / 251) ^ seed }
}

/// A file in large file storage and one in Git.
private let model = ["weights.safetensors": content(300_000)]
private let large = "weights.safetensors"

/// Enough silence for any machine, where a test is not about it.
private func patience(silence: Duration = .seconds(60)) -> Patience {
    var patience = Patience()
    patience.silence = silence
    patience.attempts = 3
    patience.firstPause = .milliseconds(1)
    patience.longestPause = .milliseconds(50)
    return patience
}

private func pull(
    _ hub: FakeHub,
    into directory: String,
    patterns: [String] = ["*"],
    _ environment: [String: String] = [:],
    silence: Duration = .seconds(60),
    freeBytes: (String) -> Int? = Pull.freeBytes,
    report: (Pull.Event) -> Void = { _ in }
) async throws {
    let name = try #require(RepositoryName("owner/model"))
    let pull = try await Pull(
        name,
        into: directory,
        variant: .full,
        patterns: patterns,
        from: hub.endpoint(environment),
        patience: patience(silence: silence)
    )
    try await pull(freeBytes: freeBytes, report: report)
}

@Suite struct PullTests {
    @Test func everythingArrivesAndIsKept() async throws {
        let files = model.merging(["sub/config.json": content(40), "a b/ü#?.txt": content(2000, seed: 1), "empty": []])
        { $1 }
        let hub = try await FakeHub(files)
        let directory = try TemporaryDirectory()
        // The folder itself is made.
        let path = directory.path + "/deep/below"
        var events: [Pull.Event] = []
        try await pull(hub, into: path, report: { events.append($0) })
        let wanted = Dictionary(uniqueKeysWithValues: files.map { ("deep/below/\($0.key)", $0.value) })
        #expect(directory.contents == wanted)
        let total = files.values.reduce(0) { $0 + $1.count }
        #expect(events.contains(.progress(bytes: total, of: total)))
        var last = 0
        for case .progress(let bytes, _) in events {
            #expect(bytes >= last)
            last = bytes
        }

        let before = try hub.running.received.count
        events = []
        try await pull(hub, into: path, report: { events.append($0) })
        // The list alone was asked for.
        #expect(try hub.running.received.count == before + 1)
        #expect(events.count == 4 && events.allSatisfy { if case .kept = $0 { true } else { false } })

        // A damaged file and one of another size come again.
        try Data(content(300_000, seed: 9)).write(to: URL(fileURLWithPath: "\(path)/\(large)"))
        try Data([1]).write(to: URL(fileURLWithPath: "\(path)/sub/config.json"))
        try await pull(hub, into: path)
        #expect(directory.contents == wanted)
        #expect(try hub.requests(for: large).count == 2)
    }

    /// Each of these ends well, with the ranges that were asked for.
    @Test(
        arguments: [
            ([.breaks(after: 100_000), .breaks(after: 50_000)], [nil, 100_000, 150_000]),
            ([.breaks(after: 0), .status(503, []), .well], [nil, nil, nil]),
            // Attempts count anew whenever something comes.
            (Array(repeating: .breaks(after: 10_000), count: 6), [nil] + (1...6).map { $0 * 10_000 }),
            ([.breaks(after: 100_000), .ignoresRanges], [nil, 100_000]),
            ([.breaks(after: 100_000), .wrongRange], [nil, 100_000, nil]),
            ([.breaks(after: 100_000), .status(416, [])], [nil, 100_000, nil]),
            ([.status(429, [("Retry-After", "0")])], [nil, nil]),
            ([.lies(length: 200_000)], [nil, nil]), ([.lies(length: 400_000)], [nil, nil]), ([.tooMuch], [nil, nil]),
            ([.wrong], [nil, nil]), ([.breaks(after: 100_000), .wrong], [nil, 100_000, nil]),
        ] as [([FakeHub.Behaviour], [Int?])]
    )
    func itArrivesInTheEnd(_ behaviours: [FakeHub.Behaviour], _ offsets: [Int?]) async throws {
        let hub = try await FakeHub(model, [large: behaviours])
        let directory = try TemporaryDirectory()
        try await pull(hub, into: directory.path)
        #expect(directory.contents == model)
        let asked = try hub.requests(for: large).map(\.offset)
        #expect(asked.count == offsets.count)
        // What is on its way when a connection breaks may not arrive.
        for (offset, most) in zip(asked, offsets) {
            #expect(offset == most || (0..<(most ?? 0)).contains(offset ?? -1), "\(asked)")
        }
    }

    /// A busy machine may be silent for as long, so there may be more requests than that.
    @Test func aServerThatHangsIsAskedAgain() async throws {
        let hub = try await FakeHub(model, [large: [.hangs(after: 1000)]])
        let directory = try TemporaryDirectory()
        try await pull(hub, into: directory.path, silence: .milliseconds(500))
        #expect(directory.contents == model)
        let asked = try hub.requests(for: large).map(\.offset)
        #expect(asked.count >= 2 && asked[0] == nil && asked[1] == 1000, "\(asked)")
    }

    /// Each of these is an error, after so many requests; what is left behind is whole or nothing.
    @Test(
        arguments: [
            (Array(repeating: .status(500, []), count: 3), 3, "failed 3 times: the server answers 500"),
            (Array(repeating: .breaks(after: 0), count: 3), 3, "failed 3 times: the connection broke"),
            (
                [.breaks(after: 200_000)] + Array(repeating: .ignoresRangesAndBreaks(after: 10_000), count: 9), 3,
                "failed 3 times: the connection broke"
            ),
            ([.wrong, .wrong], 2, "weights.safetensors: its checksum is wrong, twice in a row"),
            ([.lies(length: 9), .lies(length: 9)], 2, "the server sends 9 bytes where 300000 are to come"),
            ([.status(403, [("X-Error-Message", "gated repo")])], 1, "accept the licence"),
            ([.status(401, [])], 1, "set HF_TOKEN"), ([.status(418, [])], 1, "the server answers 418"),
            ([.redirects(to: "ftp://x/y")], 1, "it redirects to nowhere"),
        ] as [([FakeHub.Behaviour], Int, String)]
    )
    func whatDoesNotArriveIsAnError(
        _ behaviours: [FakeHub.Behaviour],
        _ requests: Int,
        _ words: String
    ) async throws {
        let hub = try await FakeHub(model, [large: behaviours])
        let directory = try TemporaryDirectory()
        let error = try await #require(throws: HubError.self) { try await pull(hub, into: directory.path) }
        #expect(error.description.contains(words), "\(error)")
        #expect(try hub.requests(for: large).count == requests)
        #expect(directory.contents[large] == nil)
    }

    @Test func anInterruptedDownloadGoesOn() async throws {
        let hub = try await FakeHub(model, [large: Array(repeating: .breaks(after: 0), count: 3)])
        let directory = try TemporaryDirectory()
        let name = try #require(RepositoryName("owner/model"))
        let wanted = try await Pull(name, into: directory.path, variant: .full, from: hub.endpoint()).selection.files
        let digits = try #require(wanted.first?.checksum.digits)
        let incomplete = "\(directory.path)/\(large).\(digits.prefix(12)).incomplete"
        try Data(content(120_000)).write(to: URL(fileURLWithPath: incomplete))
        await #expect(throws: HubError.self) { try await pull(hub, into: directory.path) }
        #expect(try Data(contentsOf: URL(fileURLWithPath: incomplete)).count == 120_000)

        // What is still to come is what has to fit.
        var progress: [Int] = []
        try await pull(
            hub,
            into: directory.path,
            freeBytes: { _ in 180_000 },
            report: {
                if case .progress(let bytes, _) = $0 { progress.append(bytes) }
            }
        )
        #expect(directory.contents == model)
        #expect(try hub.requests(for: large).map(\.offset) == [120_000, 120_000, 120_000, 120_000])
        #expect(progress.first == 120_000 && progress.last == 300_000)

        // What is left of something else, or too long, is fetched anew.
        try FileManager.default.removeItem(atPath: "\(directory.path)/\(large)")
        for rest in [content(120_000, seed: 1), content(300_001)] {
            try Data(rest).write(to: URL(fileURLWithPath: incomplete))
            try await pull(hub, into: directory.path)
            #expect(directory.contents == model)
            try FileManager.default.removeItem(atPath: "\(directory.path)/\(large)")
        }
    }

    /// A login page instead of the file costs nothing of what has come.
    @Test func aPageInItsPlaceLeavesWhatIsThere() async throws {
        let hub = try await FakeHub(model, [large: [.breaks(after: 200_000), .page, .page]])
        let directory = try TemporaryDirectory()
        let error = try await #require(throws: HubError.self) { try await pull(hub, into: directory.path) }
        #expect(error.description.contains("failed 3 times: the server sends 19 bytes"), "\(error)")
        let rest = try #require(directory.contents.values.first).count
        #expect(rest > 0)
        try await pull(hub, into: directory.path)
        #expect(directory.contents == model)
        #expect(try hub.requests(for: large).last?.offset == rest)
    }

    @Test func theDiskIsAskedFirst() async throws {
        let hub = try await FakeHub(model.merging(["b": content(5000)]) { $1 })
        let directory = try TemporaryDirectory()
        let asked = Mutex<[String]>([])
        let error = try await #require(throws: HubError.self) {
            try await pull(
                hub,
                into: directory.path + "/not/there/yet",
                freeBytes: { path in
                    asked.withLock { $0.append(path) }
                    return 304_999
                }
            )
        }
        #expect(error == .diskFull(path: directory.path + "/not/there/yet", needed: 305_000, free: 304_999))
        #expect(asked.withLock { $0 } == [directory.path])
        #expect(directory.contents.isEmpty)
        #expect(try hub.requests(for: large).isEmpty)
    }

    @Test func whatCannotBeWrittenIsAnError() async throws {
        let hub = try await FakeHub(model)
        let directory = try TemporaryDirectory()
        try Data().write(to: URL(fileURLWithPath: directory.path + "/file"))
        let error = try await #require(throws: HubError.self) { try await pull(hub, into: directory.path + "/file") }
        #expect(error.description.contains("it cannot be made"), "\(error)")
        // A link in its place is neither followed nor read.
        try FileManager.default.createSymbolicLink(
            atPath: "\(directory.path)/\(large)",
            withDestinationPath: "/dev/zero"
        )
        try await pull(hub, into: directory.path)
        #expect(directory.contents[large] == model[large])
    }

    @Test func twoDoNotWriteOneFile() async throws {
        let hub = try await FakeHub(model, [large: [.hangs(after: 1000)]])
        let directory = try TemporaryDirectory()
        let path = directory.path
        async let first: Void = pull(hub, into: path, silence: .seconds(2))
        while try hub.requests(for: large).isEmpty { try await Task.sleep(for: .milliseconds(5)) }
        let error = try await #require(throws: HubError.self) { try await pull(hub, into: path) }
        #expect(error.description.contains("another program is downloading it"), "\(error)")
        try await first
        #expect(directory.contents == model)
    }

    @Test func repositoriesThatAreNotThere() async throws {
        let hub = try await FakeHub(model)
        let name = try #require(RepositoryName("owner/model@v2"))
        let error = try await #require(throws: HubError.self) {
            try await Pull(name, into: "x", variant: .full, from: hub.endpoint(), patience: patience())
        }
        #expect(error.description.contains("there is no such repository, revision or file"), "\(error)")
        #expect(error.description.contains("(the hub says: Entry not found)"), "\(error)")
        let other = try await RawServer { _ in .init(200, body: Array("<html>".utf8)) }
        let endpoint = try HubEndpoint(environment: ["HF_ENDPOINT": other.address])
        let listing = try await #require(throws: HubError.self) {
            try await Pull(name, into: "x", variant: .full, from: endpoint, patience: patience())
        }
        #expect(listing.description.contains("HF_ENDPOINT may be no hub"), "\(listing)")
        await other.close()
        let gone = try await #require(throws: HubError.self) {
            try await Pull(name, into: "x", variant: .full, from: endpoint, patience: patience())
        }
        #expect(gone.description.contains("failed 3 times: Connection refused"), "\(gone)")
    }
}

@Suite struct TokenTests {
    /// Files come from another host, which must not see the token; relative redirects stay with the hub.
    @Test func theTokenStaysWithTheHub() async throws {
        let content = model[large] ?? []
        let store = try await RawServer { FakeHub.reply(.well, content, from: $0.offset) }
        let elsewhere = "\(store.address)/blob?signature=1"
        let hub = try await FakeHub(model, [large: [.redirects(to: "?again=1"), .redirects(to: elsewhere)]])
        let directory = try TemporaryDirectory()
        try await pull(hub, into: directory.path, ["HF_TOKEN": " hf_secret\n"])
        #expect(directory.contents == model)
        #expect(try hub.running.received.count == 3)
        #expect(try hub.running.received.allSatisfy { $0.headers["authorization"] == "Bearer hf_secret" })
        #expect(store.received.map { $0.headers["authorization"] } == [nil])
        #expect(store.received.map(\.target) == ["/blob?signature=1"])
    }

    @Test func redirectsEnd() async throws {
        let hub = try await FakeHub(model, [large: Array(repeating: .redirects(to: "?again"), count: 99)])
        let directory = try TemporaryDirectory()
        let error = try await #require(throws: HubError.self) { try await pull(hub, into: directory.path) }
        #expect(error.description.contains("it redirects more than 10 times"), "\(error)")
        #expect(!error.description.contains("again"))
        #expect(try hub.running.received.count == 1 + 11)
    }

    @Test func tokensAndHubsComeFromTheEnvironment() throws {
        let directory = try TemporaryDirectory()
        try Data("from-file\n".utf8).write(to: URL(fileURLWithPath: directory.path + "/token"))
        func token(_ environment: [String: String]) throws -> String? {
            try HubEndpoint(environment: environment).token
        }
        #expect(try token([:]) == nil && token(["HF_TOKEN": ""]) == nil)
        #expect(try token(["HF_TOKEN": "a", "HF_TOKEN_PATH": directory.path + "/token"]) == "a")
        #expect(try token(["HF_TOKEN_PATH": directory.path + "/token"]) == "from-file")
        #expect(try token(["HF_HOME": directory.path]) == "from-file")
        #expect(try token(["HF_HOME": directory.path + "/none"]) == nil)
        #expect(throws: HubError.self) { try token(["HF_TOKEN": "a b"]) }
        #expect(throws: HubError.self) { try token(["HF_TOKEN": "a\r\nX: y"]) }
        #expect(try HubEndpoint(environment: [:]).url.absoluteString == "https://huggingface.co")
        let mirror = try HubEndpoint(environment: ["HF_ENDPOINT": "http://mirror.example:8080/hub//"])
        let name = try #require(RepositoryName("a/b@refs/pr/1"))
        #expect(
            try mirror.listing(of: name).absoluteString
                == "http://mirror.example:8080/hub/api/models/a/b/revision/refs%2Fpr%2F1?blobs=true"
        )
        #expect(
            try mirror.file("x y/ü#.bin", of: name, commit: "c").absoluteString
                == "http://mirror.example:8080/hub/a/b/resolve/c/x%20y/%C3%BC%23.bin"
        )
        for address in ["hub", "ftp://x", "https://", "https://u:p@x", "https://x?y=1", "://"] {
            #expect(throws: HubError.self) { try HubEndpoint(environment: ["HF_ENDPOINT": address]) }
        }
    }
}
