// Which models are loaded and which have to go: the least recently used first, when there is no room for another. Only counts; the engine loads.

/// The models on the device, by when they were last used.
struct ModelResidency {
    private struct Resident {
        let name: String
        let bytes: Int
    }

    /// Bytes that weights may take together; nil for as many as the device has.
    private let budget: Int?
    /// The least recently used first.
    private var residents: [Resident] = []

    init(budget: Int?) {
        self.budget = budget
    }

    /// Bytes of the weights of all that are loaded.
    var bytes: Int { residents.reduce(0) { $0 + $1.bytes } }

    /// Notes that a model draws, loaded for that or before.
    mutating func use(_ name: String, bytes: Int) {
        remove(name)
        residents.append(Resident(name: name, bytes: bytes))
    }

    /// Notes that a model is gone.
    mutating func remove(_ name: String) {
        residents.removeAll { $0.name == name }
    }

    /// The next to go.
    ///
    /// - Parameter keeping: One that stays, as it is about to draw.
    func leastRecentlyUsed(besides keeping: String) -> String? {
        residents.first { $0.name != keeping }?.name
    }

    /// Whether a model has room beside those that are loaded.
    ///
    /// A budget too small for it alone keeps it from nothing: it is then the only one.
    /// - Parameter available: Bytes that the device still has; nil where that is not known.
    func hasRoom(for bytes: Int, available: Int?) -> Bool {
        if let budget, self.bytes + bytes > budget { return false }
        return available.map { bytes <= $0 } ?? true
    }
}
