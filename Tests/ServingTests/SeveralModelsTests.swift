// Several models: which have to go, and through HTTP on a fake device that requests load what they name, that the least used goes, and what is
// answered for a model that cannot be had.

import HTTPTypes
import HummingbirdTesting
import JSON
import StableDiffusion
import Testing

@testable import Serving

@Suite struct ModelResidencyTests {
    @Test func theLeastRecentlyUsedGoesFirst() {
        var residency = ModelResidency(budget: nil)
        #expect(residency.leastRecentlyUsed(besides: "a") == nil)
        for name in ["a", "b", "c", "a"] { residency.use(name, bytes: 10) }
        #expect(residency.bytes == 30)
        #expect(residency.leastRecentlyUsed(besides: "d") == "b")
        #expect(residency.leastRecentlyUsed(besides: "b") == "c")
        residency.remove("b")
        #expect(residency.bytes == 20 && residency.leastRecentlyUsed(besides: "d") == "c")
    }

    @Test func roomIsWhatBudgetAndDeviceAllow() {
        var residency = ModelResidency(budget: 25)
        residency.use("a", bytes: 10)
        #expect(residency.hasRoom(for: 15, available: nil) && !residency.hasRoom(for: 16, available: nil))
        #expect(residency.hasRoom(for: 15, available: 15) && !residency.hasRoom(for: 15, available: 14))
        #expect(ModelResidency(budget: nil).hasRoom(for: 1 << 40, available: nil))
    }
}

@Suite struct SeveralModelsTests {
    private func model(_ name: String, _ path: String) -> Configuration.Model {
        var model = Configuration.Model()
        (model.givenName, model.path) = (name, path)
        return model
    }

    private func run(
        _ device: FakeDevice,
        memory: Int? = nil,
        _ body: @escaping @Sendable (Daemon) async throws -> Void
    ) async throws {
        let models = [
            model("b", "m/b"), model("c", "m/c-large"), model("gone", "m/missing"), model("broken", "m/damaged"),
        ]
        try await withDaemon(device) {
            $0.model.path = "m/a"
            $0.models = models
            $0.modelMemory = memory
        } _: { daemon in
            try await body(daemon)
        }
    }

    @Test func requestsLoadWhatTheyName() async throws {
        let device = FakeDevice()
        try await run(device) { daemon in
            try await daemon.test { client in
                for name in ["b", "a", "b", "c"] {
                    let answer = try await client.generate("{\"prompt\": \"p\", \"model\": \"\(name)\"}")
                    #expect(answer.status == .ok)
                    #expect(daemon.catalogue.entries.first { $0.name == name }?.loaded != nil)
                }
                try await #expect(client.generate("{\"prompt\": \"p\", \"model\": null}").status == .ok)
                #expect(device.loads == ["m/a", "m/b", "m/c-large"])
                // Each at the size it was trained for; the warm-up is the usual one's.
                #expect(device.prepared.map(\.width) == [64, 64, 64, 128, 64])
                #expect(device.prepared.map(\.model) == ["b", "a", "b", "c", "a"])

                let listed = try await client.get("/models").json?["models"]?.arrayValue ?? []
                #expect(listed.map { $0["name"] } == ["a", "b", "c", "gone", "broken"])
                #expect(listed.map { $0["default"] } == [true, false, false, false, false])
                #expect(listed.map { $0["loaded"] } == [true, true, true, false, false])
                #expect(listed[2]["native_size"] == 128 && listed[3]["native_size"] == .null)
                #expect(listed[3]["error"]?.stringValue?.contains("it is not there") == true)
                let metrics = try await client.get("/metrics").text
                #expect(metrics.contains("diffused_model_loads_total{model=\"b\"} 1"))
                #expect(metrics.contains("diffused_model_info{model=\"b\""))
                let document = try await client.get("/openapi.json").json
                let field = document?["components"]?["schemas"]?["GenerationRequest"]?["properties"]?["model"]
                #expect(field?["default"] == "a" && field?["enum"]?.arrayValue?.count == 6)
            }
        }
    }

    /// By the device's room, and by what is configured.
    @Test(arguments: [(2, nil), (100, 2)])
    func theLeastUsedGoes(_ room: Int, _ memory: Int?) async throws {
        let device = FakeDevice(room: room)
        try await run(device, memory: memory) { daemon in
            try await daemon.test { client in
                for name in ["b", "a", "c", "b", "b"] {
                    let answer = try await client.generate("{\"prompt\": \"p\", \"model\": \"\(name)\"}")
                    #expect(answer.status == .ok)
                }
                // The usual one goes as any other.
                #expect(device.loads == ["m/a", "m/b", "m/c-large", "m/b"])
                #expect(Set(device.loaded) == ["m/c-large", "m/b"])
                let loads = daemon.catalogue.entries.map(\.loadCount)
                #expect(loads == [1, 2, 1, 0, 0])
                #expect(daemon.catalogue.entries.map { $0.loaded != nil } == [false, true, true, false, false])
            }
        }
    }

    /// A picture for which there is no room beside other models makes them go, one by one, and is refused when it is alone.
    @Test func aPictureMakesRoom() async throws {
        let device = FakeDevice()
        let size = PictureMemory.Size(width: 64, height: 64)
        let lacking = PictureMemory(
            size: size,
            neededBytes: 9,
            availableBytes: 1,
            isOneAllocation: false,
            largest: nil,
            isPermanent: true
        )
        device.fail("vast", with: .doesNotFit(lacking))
        try await run(device) { daemon in
            try await daemon.test { client in
                try await #expect(client.generate("{\"prompt\": \"p\", \"model\": \"b\"}").status == .ok)
                let answer = try await client.generate("{\"prompt\": \"vast\", \"model\": \"c\"}")
                #expect(answer.status == .unprocessableContent && device.loaded == ["m/c-large"])
                #expect(device.prepared.map(\.prompt) == ["p", "vast", "vast", "vast"])
                try await #expect(client.generate("{\"prompt\": \"p\"}").status == .ok)
            }
        }
    }

    @Test func aModelThatCannotBeHadFailsItsRequestAlone() async throws {
        let device = FakeDevice()
        try await run(device) { daemon in
            try await daemon.test { client in
                for (name, status, words) in [
                    ("gone", 422, "it cannot be used: m/missing: it is not there"),
                    ("d", 422, "Input should be 'a', 'b'"),
                    ("broken", 503, "cannot load m/damaged"),
                ] {
                    let answer = try await client.generate("{\"prompt\": \"p\", \"model\": \"\(name)\"}")
                    #expect(answer.status.code == status && answer.text.contains(words), "\(answer.text)")
                }
                try await #expect(client.generate("{\"prompt\": \"p\", \"model\": 3}").status == .unprocessableContent)
                try await #expect(client.generate("{\"prompt\": \"p\", \"model\": \"b\"}").status == .ok)
                try await #expect(client.get("/health/ready").status == .ok)
            }
        }
    }
}
