#if canImport(FoundationModels) && (compiler(>=6.4) || os(Linux))
    import Calora
    import FoundationModels

    /// A transcript as calora takes it: instructions, what was said, what is asked.
    @available(iOS 27.0, macOS 27.0, *)
    struct Conversation: Hashable {
        var instructions: String?
        var past: [Message] = []
        var prompt = ""

        /// - Parameter answering: Whether the last entry is the prompt to answer.
        init(_ transcript: Transcript, answering: Bool) throws {
            for entry in transcript {
                switch entry {
                case .instructions(let instructions):
                    let text = try Self.text(instructions.segments, of: entry)
                    self.instructions = [self.instructions, text].compactMap { $0 }.joined(separator: "\n")
                case .prompt(let prompt):
                    past.append(Message(role: .user, content: try Self.text(prompt.segments, of: entry)))
                case .response(let response):
                    past.append(Message(role: .assistant, content: try Self.text(response.segments, of: entry)))
                default:
                    throw unsupported([entry], "calora takes instructions, prompts and responses only")
                }
            }
            if instructions?.isEmpty == true { instructions = nil }
            guard answering else { return }
            guard let last = past.popLast(), last.role == .user else {
                throw unsupported([], "the transcript does not end with a prompt")
            }
            prompt = last.content
        }

        private static func text(_ segments: [Transcript.Segment], of entry: Transcript.Entry) throws -> String {
            try segments.map { segment in
                switch segment {
                case .text(let text): text.content
                case .structure(let structure): structure.content.jsonString
                default: throw unsupported([entry], "calora takes text only")
                }
            }.joined()
        }
    }
#endif
