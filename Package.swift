// swift-tools-version: 6.0
import PackageDescription

// The package of ios/, at the root because SwiftPM wants it there. ios/README.md says what is generated and how a
// release is made.

#if os(Linux)
    // Tests on a developer's or CI machine: the header that uniffi wrote, and libcalora_ffi.so on the linker's path.
    let onApple = false
    let engine: [Target] = [.systemLibrary(name: "CaloraFFI", path: "ios/Sources/CaloraFFI")]
#else
    let onApple = true
    let engine: [Target] = [xcframework()]

    /// A release's file, or the one that ios/build-xcframework.sh has just built: CALORA_XCFRAMEWORK names its folder,
    /// relative to this file.
    func xcframework() -> Target {
        if let path = Context.environment["CALORA_XCFRAMEWORK"] {
            return .binaryTarget(name: "CaloraFFI", path: path)
        }
        // ios/build-xcframework.sh prints both lines; the release checklist puts them here.
        return .binaryTarget(
            name: "CaloraFFI",
            url: "https://calora.invalid/releases/0.1.0/CaloraFFI.xcframework.zip",
            checksum: "0000000000000000000000000000000000000000000000000000000000000000"
        )
    }
#endif

let library: [LinkerSetting] = [
    .linkedLibrary("calora_ffi", .when(platforms: [.linux])),
    .linkedFramework("Metal", .when(platforms: [.iOS, .macOS])),
    .linkedFramework("QuartzCore", .when(platforms: [.iOS, .macOS])),
    .linkedFramework("CoreGraphics", .when(platforms: [.iOS, .macOS])),
]

// Apple's framework, or the stub that declares what we use of it.
let foundationModels: [Target] =
    onApple ? [] : [.target(name: "FoundationModels", path: "ios/Stubs/FoundationModels", exclude: ["README.md"])]
let onFoundationModels: [Target.Dependency] = onApple ? ["Calora"] : ["Calora", "FoundationModels"]

let package = Package(
    name: "calora",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [
        .library(name: "Calora", targets: ["Calora"]),
        .library(name: "CaloraFoundationModels", targets: ["CaloraFoundationModels"]),
    ],
    targets: engine + foundationModels + [
        // Written by uniffi from the very library that is linked. Its code for asynchronous calls is of Swift 5.
        .target(
            name: "CaloraBindings",
            dependencies: ["CaloraFFI"],
            path: "ios/Sources/CaloraBindings",
            swiftSettings: [.swiftLanguageMode(.v5)],
            linkerSettings: library
        ),
        .target(
            name: "Calora",
            dependencies: ["CaloraBindings"],
            path: "ios/Sources/Calora",
            resources: [.copy("PrivacyInfo.xcprivacy")]
        ),
        .target(
            name: "CaloraFoundationModels",
            dependencies: onFoundationModels,
            path: "ios/Sources/CaloraFoundationModels"
        ),

        // The samples' logic; their SwiftUI halves belong to an app (ios/Samples/README.md).
        .target(name: "MinimalSample", dependencies: ["Calora"], path: "ios/Samples/Minimal/Logic"),
        .target(name: "AssistantSample", dependencies: ["Calora"], path: "ios/Samples/Assistant/Logic"),

        .target(name: "CaloraTestSupport", dependencies: ["Calora"], path: "ios/Tests/Support"),
        .testTarget(name: "CaloraTests", dependencies: ["Calora", "CaloraTestSupport"], path: "ios/Tests/CaloraTests"),
        .testTarget(
            name: "CaloraFoundationModelsTests",
            dependencies: ["CaloraFoundationModels", "CaloraTestSupport"] + onFoundationModels,
            path: "ios/Tests/CaloraFoundationModelsTests"
        ),
        .testTarget(
            name: "SampleTests",
            dependencies: ["MinimalSample", "AssistantSample", "CaloraTestSupport"],
            path: "ios/Tests/SampleTests"
        ),
    ],
    swiftLanguageModes: [.v6]
)
