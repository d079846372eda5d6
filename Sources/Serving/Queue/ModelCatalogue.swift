// What is known of the models that requests may name: written by the engine, read by the routes while its thread is inside a device call.

internal import StableDiffusion
internal import Synchronization

/// The models of a daemon.
final class ModelCatalogue: Sendable {
    /// One of them.
    struct Entry: Sendable, Equatable {
        /// What requests call it.
        let name: String
        /// What its files say; nil while they have not been read, or could not be.
        var outline: ModelOutline?
        /// Why they could not be read.
        var problem: String?
        /// What is on the device; nil for nothing.
        var loaded: ModelDescription?
        /// How often it was loaded.
        var loadCount = 0
    }

    private let state: Mutex<[Entry]>

    /// Models of which nothing is known but their names; the first draws when a request names none.
    init(names: [String]) {
        state = Mutex(names.map { Entry(name: $0) })
    }

    /// All of them, the usual one first.
    var entries: [Entry] { state.withLock { $0 } }

    /// Notes what a model's files say.
    func note(_ name: String, outline: Result<ModelOutline, any Error>) {
        change(name) { entry in
            switch outline {
            case .success(let outline): (entry.outline, entry.problem) = (outline, nil)
            case .failure(let error): (entry.outline, entry.problem) = (nil, "\(error)")
            }
        }
    }

    /// Notes that a model is on the device, or no longer.
    func note(_ name: String, loaded: ModelDescription?) {
        change(name) { entry in
            if loaded != nil, entry.loaded == nil { entry.loadCount += 1 }
            entry.loaded = loaded
        }
    }

    private func change(_ name: String, _ body: (inout Entry) -> Void) {
        state.withLock { entries in
            guard let index = entries.firstIndex(where: { $0.name == name }) else { return }
            body(&entries[index])
        }
    }
}
