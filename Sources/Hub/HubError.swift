// What can go wrong with a hub, each with what to do about it.

/// Why nothing, or not everything, was downloaded.
public enum HubError: Error, Sendable, Equatable, CustomStringConvertible {
    /// `HF_ENDPOINT` or a token is no such thing.
    case badSetting(String)
    /// The hub's list of files makes no sense.
    case badListing(String)
    /// The files wanted are not in the repository, or it is not clear which are.
    case selection(String)
    /// The hub answered that it will not; `reason` is what it said, if anything.
    case refused(status: Int, address: String, reason: String?)
    /// Nothing came of it for so many attempts.
    case unreachable(address: String, attempts: Int, reason: String)
    /// What came is not what was promised, twice.
    case damaged(path: String, reason: String)
    /// It does not fit the disk.
    case diskFull(path: String, needed: Int, free: Int)
    /// A file cannot be written.
    case file(path: String, reason: String)

    /// What happened and what to do, in a sentence or two.
    public var description: String {
        switch self {
        case .badSetting(let reason): reason
        case .badListing(let reason): "the hub's answer cannot be used: \(reason)"
        case .selection(let reason): reason
        case .refused(let status, let address, let reason):
            Self.refusal(status, address) + (reason.map { " (the hub says: \($0))" } ?? "")
        case .unreachable(let address, let attempts, let reason):
            "\(address) failed \(attempts) times: \(reason). What has come is kept; run this again to go on from there"
        case .damaged(let path, let reason):
            "\(path): \(reason), twice in a row; the server or something between changes files"
        case .diskFull(let path, let needed, let free):
            "\(path): \(byteText(needed)) are still to come and \(byteText(free)) are free; free another "
                + "\(byteText(needed - free)), or choose another place with --output"
        case .file(let path, let reason): "\(path): \(reason)"
        }
    }

    private static func refusal(_ status: Int, _ address: String) -> String {
        switch status {
        case 401:
            "\(address): there is no such repository, or it needs a token; set HF_TOKEN to one of an account that may read it"
        case 403:
            "\(address): access is refused; accept the licence on the repository's page, and set HF_TOKEN to a token of that account"
        case 404: "\(address): there is no such repository, revision or file"
        default: "\(address): the server answers \(status)"
        }
    }
}

/// A number of bytes for people.
public func byteText(_ bytes: Int) -> String {
    let units = ["bytes", "kB", "MB", "GB", "TB"]
    var (value, unit) = (Double(bytes), 0)
    while value >= 999.5, unit < units.count - 1 { (value, unit) = (value / 1000, unit + 1) }
    guard unit > 0 else { return "\(bytes) bytes" }
    let digits = value < 10 ? 100.0 : value < 100 ? 10 : 1
    let rounded = (value * digits).rounded() / digits
    return "\(rounded == rounded.rounded() ? String(Int(rounded)) : String(rounded)) \(units[unit])"
}
