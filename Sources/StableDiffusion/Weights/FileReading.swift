// Reads whole small files. Failures carry the system's reason in words, for the error of whoever asked for the file.

internal import Glibc

/// Why a file could not be read.
struct FileReadingError: Error, Equatable {
    /// The reason as the end of a sentence about the file.
    let reason: String
    /// Whether the file does not exist at all.
    let isMissing: Bool
}

/// Reads a file into memory.
///
/// - Parameter maximumBytes: a larger file is refused before anything is allocated.
func readFile(_ path: String, maximumBytes: Int) throws(FileReadingError) -> [UInt8] {
    let descriptor = try openForReading(path)
    defer { close(descriptor.number) }
    guard descriptor.size <= maximumBytes else {
        throw FileReadingError(
            reason: "the file has \(descriptor.size) bytes, more than the \(maximumBytes) allowed here",
            isMissing: false
        )
    }
    var failure: Int32 = 0
    let bytes = [UInt8](unsafeUninitializedCapacity: descriptor.size) { buffer, count in
        while count < descriptor.size, let base = buffer.baseAddress {
            let got = read(descriptor.number, base + count, descriptor.size - count)
            if got < 0, errno == EINTR { continue }
            if got < 0 { failure = errno }
            // Zero bytes mean that the file became shorter since its size was asked; the parser will say so.
            if got <= 0 { break }
            count += got
        }
    }
    guard failure == 0 else { throw FileReadingError(reason: readingFailure(failure), isMissing: false) }
    return bytes
}

/// An open regular file and its size in bytes.
///
/// The caller closes it.
struct OpenFile {
    let number: Int32
    let size: Int
}

/// Opens a regular file for reading.
func openForReading(_ path: String) throws(FileReadingError) -> OpenFile {
    // A path from a configuration could hold a NUL, which C would silently cut it at.
    guard !path.utf8.contains(0) else {
        throw FileReadingError(reason: "the path contains a NUL character", isMissing: false)
    }
    // Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
    let number = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
    guard number >= 0 else {
        let code = errno
        throw FileReadingError(reason: readingFailure(code), isMissing: code == ENOENT || code == ENOTDIR)
    }
    var status = stat()
    guard fstat(number, &status) == 0 else {
        let code = errno
        close(number)
        throw FileReadingError(reason: readingFailure(code), isMissing: false)
    }
    guard status.st_mode & S_IFMT == S_IFREG else {
        close(number)
        let kind = status.st_mode & S_IFMT == S_IFDIR ? "a directory" : "not a regular file"
        throw FileReadingError(reason: "it is \(kind)", isMissing: false)
    }
    return OpenFile(number: number, size: Int(status.st_size))
}

/// Whether a regular file is there.
///
/// A broken link or an unreadable directory counts as no file.
func regularFileExists(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
}

/// Why a name that a directory lists is no file to read; nil when it is one.
func regularFileFault(_ path: String) -> String? {
    do {
        close(try openForReading(path).number)
        return nil
    } catch {
        return error.isMissing ? "it is a link to a file that is not there" : error.reason
    }
}

/// Whether a directory is there.
func directoryExists(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
}

/// The names in a directory, sorted; empty when it cannot be read.
func directoryNames(_ path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
            pointer.withMemoryRebound(to: CChar.self, capacity: MemoryLayout.size(ofValue: pointer.pointee)) {
                String(cString: $0)
            }
        }
        if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
}

private func readingFailure(_ code: Int32) -> String {
    "the file cannot be read (\(String(cString: strerror(code))))"
}
