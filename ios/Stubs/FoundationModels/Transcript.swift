import Foundation

public struct Transcript: Sendable, RandomAccessCollection {
    public enum Entry: Sendable {
        case instructions(Instructions)
        case prompt(Prompt)
        case toolCalls(ToolCalls)
        case toolOutput(ToolOutput)
        case response(Response)
    }

    public enum Segment: Sendable {
        case text(TextSegment)
        case structure(StructuredSegment)
        case attachment(AttachmentSegment)
    }

    public struct AttachmentSegment: Sendable {
        public init() {}
    }

    public struct TextSegment: Sendable {
        public var id: String
        public var content: String
        public init(id: String = UUID().uuidString, content: String) {
            self.id = id
            self.content = content
        }
    }

    public struct StructuredSegment: Sendable {
        public var content: GeneratedContent
        public init(content: GeneratedContent) { self.content = content }
    }

    public struct ToolDefinition: Sendable {
        public var name: String
        public init(name: String) { self.name = name }
    }

    public struct Instructions: Sendable {
        public var segments: [Segment]
        public init(segments: [Segment], toolDefinitions: [ToolDefinition]) { self.segments = segments }
    }

    public struct Prompt: Sendable {
        public var segments: [Segment]
        public init(segments: [Segment]) { self.segments = segments }
    }

    public struct Response: Sendable {
        public var segments: [Segment]
        public init(assetIDs: [String], segments: [Segment]) { self.segments = segments }
    }

    public struct ToolCalls: Sendable {
        public init() {}
    }

    public struct ToolOutput: Sendable {
        public var segments: [Segment]
        public init(segments: [Segment]) { self.segments = segments }
    }

    var entries: [Entry]

    public init(entries: some Sequence<Entry> = []) {
        self.entries = Array(entries)
    }

    public var startIndex: Int { entries.startIndex }
    public var endIndex: Int { entries.endIndex }
    public subscript(position: Int) -> Entry { entries[position] }
}

public protocol ConvertibleToGeneratedContent {}
extension String: ConvertibleToGeneratedContent {}

public struct GeneratedContent: Sendable {
    public var jsonString: String
    public init(jsonString: String) { self.jsonString = jsonString }
}

public struct GenerationSchema: Sendable {
    public init() {}
}
