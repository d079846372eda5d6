// Where tests find the repository's own files.

import Foundation

/// The directory of Package.swift, or a copy of its `Models` and `Tests/Fixtures` that `DIFFUSED_TEST_ROOT` names: tests also run on
/// machines without the sources (scripts/gpu-check).
package let packageRoot: String = {
    if let copy = ProcessInfo.processInfo.environment["DIFFUSED_TEST_ROOT"] { return copy }
    // .../Tests/Support/PackageRoot.swift
    var parts = #filePath.split(separator: "/", omittingEmptySubsequences: false)
    parts.removeLast(3)
    return parts.joined(separator: "/")
}()

/// The demo model's folder.
package let demoModelPath = packageRoot + "/Models/demo"
